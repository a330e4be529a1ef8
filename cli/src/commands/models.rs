use clap::Subcommand;
use garrison_proto::alert::v1::{
    FinishLearningRequest, GetModelRequest, GetModelVersionRequest, ListModelVersionsRequest,
    ListModelVersionsResponse, Model as ModelMessage, ModelDrift, ModelVersion, PromoteModelRequest,
    RollBackModelRequest, ShadowComparison, StartLearningRequest, UpdateModelRequest,
    detection_service_client::DetectionServiceClient, model_service_client::ModelServiceClient,
};

use crate::{
    Context,
    error::CliError,
    output::{time, word},
};

/// Features of the drift that are shown.
const MOVED: usize = 8;

/// Steer the model: what it learns, and which version is live.
#[derive(Subcommand)]
pub enum Model {
    /// Show the model and how it does
    Status,
    /// Start learning what is normal
    ///
    /// What the live model takes for unusual is left out, and so is everything of a source with an open alert.
    Learn {
        /// The network has changed: learn what the live model takes for unusual, too
        #[arg(long)]
        include_unusual: bool,
    },
    /// Train on what was learnt; a first model goes live, a later one is a candidate
    Finish,
    /// Learn a candidate from recent traffic
    Update,
    /// List the versions, the latest first
    List,
    /// Show one version: what it learnt, how well, and what speaks against it
    Show {
        /// Its number
        #[arg(id = "model_version", value_name = "VERSION")]
        version: u64,
    },
    /// Show how the candidate compares with the live model on the same flows
    Compare,
    /// Show how far the traffic is from what the live model learnt
    Drift,
    /// Put the candidate in the live model's place
    Promote {
        /// Its number
        #[arg(id = "model_version", value_name = "VERSION")]
        version: u64,
        /// Although something speaks against it; later versions are held against it from then on
        #[arg(long)]
        despite_objection: bool,
    },
    /// Put an earlier version in the live model's place
    ///
    /// Without a number it is the one that was live before.
    Rollback {
        /// Its number
        #[arg(id = "model_version", value_name = "VERSION")]
        version: Option<u64>,
    },
}

impl Model {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let channel = context.remote.service("anomaly").await?;
        let mut detection = DetectionServiceClient::new(channel.clone());
        let mut models = ModelServiceClient::new(channel);
        let model = match self {
            Self::Status => detection.get_model(GetModelRequest {}).await?.into_inner().model,
            Self::Learn { include_unusual } => {
                let request = StartLearningRequest { include_unusual };
                detection.start_learning(request).await?.into_inner().model
            }
            Self::Finish => {
                let answer = detection.finish_learning(FinishLearningRequest {}).await?;
                answer.into_inner().model
            }
            Self::Update => models.update_model(UpdateModelRequest {}).await?.into_inner().model,
            Self::Promote {
                version,
                despite_objection,
            } => {
                let request = PromoteModelRequest {
                    version,
                    despite_objection,
                };
                models.promote_model(request).await?.into_inner().model
            }
            Self::Rollback { version } => {
                let version = version.unwrap_or(0);
                let answer = models.roll_back_model(RollBackModelRequest { version }).await?;
                answer.into_inner().model
            }
            Self::Show { version } => {
                let answer = models.get_model_version(GetModelVersionRequest { version }).await?;
                let answer = answer.into_inner();
                let shown = answer
                    .version
                    .clone()
                    .ok_or(CliError::Answer("anomaly", "the version"))?;
                context.printer.record(&answer, &describe(&shown));
                return Ok(());
            }
            Self::List | Self::Compare | Self::Drift => {
                let answer = models.list_model_versions(ListModelVersionsRequest {}).await?;
                self.show(context, answer.into_inner());
                return Ok(());
            }
        };
        let model: ModelMessage = model.ok_or(CliError::Answer("anomaly", "the model"))?;
        let fields = [
            ("phase", word(model.phase().as_str_name(), "MODEL_PHASE_")),
            ("version", model.version.to_string()),
            ("learnt flows", model.learnt_flows.to_string()),
            ("trained", time(model.trained.as_ref())),
            ("validation loss", format!("{:.6}", model.validation_loss)),
            ("threshold", format!("{:.6}", model.threshold)),
            ("scored flows", model.scored_flows.to_string()),
            ("above threshold", format!("{:.5} of scored flows", model.realised_rate)),
            ("weights", model.weights_sha256.clone()),
            ("features", model.features.join(", ")),
        ];
        context.printer.record(&model, &fields);
        Ok(())
    }

    fn show(&self, context: &Context, answer: ListModelVersionsResponse) {
        match self {
            Self::Compare => {
                let shadow = answer.shadow.clone().unwrap_or_default();
                context.printer.record(&shadow, &compared(&shadow));
            }
            Self::Drift => {
                let drift = answer.drift.clone().unwrap_or_default();
                context.printer.record(&drift, &drifted(&drift));
            }
            _ => {
                let headers = [
                    "version",
                    "role",
                    "kind",
                    "trained",
                    "learnt",
                    "loss",
                    "weights",
                    "objection",
                ];
                context.printer.list("models", &headers, &answer.versions, |v| {
                    vec![
                        v.version.to_string(),
                        word(v.role().as_str_name(), "MODEL_ROLE_"),
                        v.kind.clone(),
                        time(v.trained.as_ref()),
                        v.learnt_flows.to_string(),
                        format!("{:.4}", v.validation_loss),
                        v.weights_sha256.chars().take(12).collect(),
                        v.objection.clone(),
                    ]
                });
            }
        }
    }
}

fn describe(v: &ModelVersion) -> Vec<(&'static str, String)> {
    let attacks: Vec<String> = v
        .reference_attacks
        .iter()
        .map(|a| {
            let (own, first) = (100.0 * a.found, 100.0 * a.found_of_first);
            format!("{}: {own:.0} % found, {first:.0} % of the first model's", a.name)
        })
        .collect();
    vec![
        ("version", v.version.to_string()),
        ("role", word(v.role().as_str_name(), "MODEL_ROLE_")),
        ("kind", v.kind.clone()),
        ("trained", time(v.trained.as_ref())),
        ("learnt from", time(v.learnt_from.as_ref())),
        ("learnt until", time(v.learnt_until.as_ref())),
        ("learnt flows", v.learnt_flows.to_string()),
        (
            "rows",
            format!("{} trained on, {} held back", v.training_rows, v.held_rows),
        ),
        ("validation loss", format!("{:.6}", v.validation_loss)),
        ("seed", v.seed.to_string()),
        ("weights", format!("{} ({} octets)", v.weights_sha256, v.weights_bytes)),
        ("reference attacks", attacks.join("\n")),
        (
            "later versions are held against it",
            if v.is_reference { "yes" } else { "no" }.to_owned(),
        ),
        ("objection", v.objection.clone()),
        ("features", v.features.join(", ")),
    ]
}

fn compared(shadow: &ShadowComparison) -> Vec<(&'static str, String)> {
    if shadow.version == 0 {
        return vec![("candidate", "there is none".to_owned())];
    }
    let share = |n: u64| format!("{n} ({:.4} %)", 100.0 * n as f64 / shadow.records.max(1) as f64);
    let quantiles: Vec<String> = shadow
        .quantiles
        .iter()
        .map(|q| {
            let percent = 100.0 * q.share;
            format!("{percent:.1} % below {:.2} live, {:.2} candidate", q.live, q.candidate)
        })
        .collect();
    let hindrance = match shadow.hindrance.as_str() {
        "" => "nothing".to_owned(),
        hindrance => hindrance.to_owned(),
    };
    vec![
        ("candidate", shadow.version.to_string()),
        ("records scored by both", shadow.records.to_string()),
        ("above the live threshold", share(shadow.live_above)),
        ("above the candidate's", share(shadow.candidate_above)),
        ("above both", share(shadow.both_above)),
        ("correlation of scores", format!("{:.3}", shadow.correlation)),
        ("scores", quantiles.join("\n")),
        ("speaks against promotion", hindrance),
    ]
}

fn drifted(drift: &ModelDrift) -> Vec<(&'static str, String)> {
    if !drift.is_known {
        let known = format!("too few records to tell ({})", drift.records);
        return vec![("drift", known)];
    }
    let said = |index: f64| {
        let word = match index {
            i if i >= 0.25 => "much has changed",
            i if i >= 0.1 => "has changed",
            _ => "as learnt",
        };
        format!("{index:.3} {word}")
    };
    let features: Vec<String> = drift
        .features
        .iter()
        .take(MOVED)
        .map(|f| format!("{}: {}", f.name, said(f.index)))
        .collect();
    vec![
        ("records", drift.records.to_string()),
        ("scores", said(drift.score_index)),
        ("features", features.join("\n")),
    ]
}
