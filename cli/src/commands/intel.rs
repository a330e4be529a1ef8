use clap::Subcommand;
use garrison_proto::alert::v1::{
    FeedState, IndicatorMatch, ListIndicatorFeedsRequest, LookupIndicatorRequest,
    detection_service_client::DetectionServiceClient,
};

use crate::{
    Context,
    error::CliError,
    output::{time, word},
};

/// Show what threat intelligence knows.
#[derive(Subcommand)]
pub enum Intel {
    /// List the feeds and how they fare
    ///
    /// For example: garrison intel feeds --problems
    Feeds {
        /// Show what was not taken, too
        #[arg(long)]
        problems: bool,
    },
    /// Look up an address, network, domain, URL, fingerprint or hash
    ///
    /// For example: garrison intel lookup 192.0.2.7
    Lookup {
        /// The value
        value: String,
        /// What it is, where its form does not show it: ja3, ja3s, certificate, domain-tree, …
        #[arg(long)]
        kind: Option<String>,
    },
}

impl Intel {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = DetectionServiceClient::new(context.remote.service("anomaly").await?);
        match self {
            Self::Feeds { problems } => {
                let answer = client
                    .list_indicator_feeds(ListIndicatorFeedsRequest {})
                    .await?
                    .into_inner();
                let headers = [
                    "FEED",
                    "FORMAT",
                    "STATE",
                    "INDICATORS",
                    "HELD BACK",
                    "NOT TAKEN",
                    "READ",
                    "WHY",
                ];
                context.printer.list("feeds", &headers, &answer.feeds, |feed| {
                    let not_taken = feed.bad + feed.not_understood + feed.expired + feed.too_many;
                    let mut why = Vec::new();
                    if feed.state() == FeedState::Stale {
                        why.push(feed.failure.clone());
                    }
                    if problems {
                        why.extend(feed.problems.iter().cloned());
                    }
                    vec![
                        feed.name.clone(),
                        feed.format.clone(),
                        word(feed.state().as_str_name(), "FEED_STATE_"),
                        feed.indicators.to_string(),
                        feed.held_back.to_string(),
                        not_taken.to_string(),
                        time(feed.read.as_ref()),
                        why.join("\n"),
                    ]
                });
            }
            Self::Lookup { value, kind } => {
                let request = LookupIndicatorRequest {
                    value,
                    kind: kind.unwrap_or_default(),
                };
                let answer = client.lookup_indicator(request).await?.into_inner();
                let known: Vec<String> = answer.matches.iter().map(said).collect();
                let fields = [
                    ("value", answer.value.clone()),
                    ("kind", answer.kind.clone()),
                    (
                        "known",
                        if known.is_empty() {
                            "nothing".to_owned()
                        } else {
                            known.join("\n")
                        },
                    ),
                    (
                        "allowed",
                        if answer.allowed {
                            "yes: it raises no alert"
                        } else {
                            "no"
                        }
                        .to_owned(),
                    ),
                    ("warning", answer.warning.clone()),
                ];
                context.printer.record(&answer, &fields);
            }
        }
        Ok(())
    }
}

/// A line on what a source says of a value.
pub fn said(indicator: &IndicatorMatch) -> String {
    let mut text = format!(
        "{} {} from {} with confidence {} %",
        indicator.kind, indicator.value, indicator.source, indicator.confidence
    );
    for words in [&indicator.labels, &indicator.techniques] {
        if !words.is_empty() {
            text += &format!(", {}", words.join(", "));
        }
    }
    for word in [&indicator.context, &indicator.reference] {
        if !word.is_empty() {
            text += &format!(", {word}");
        }
    }
    if indicator.valid_from.is_some() {
        text += &format!(", from {}", time(indicator.valid_from.as_ref()));
    }
    if indicator.valid_until.is_some() {
        text += &format!(", until {}", time(indicator.valid_until.as_ref()));
    }
    text
}
