//! What people say of alerts.

use std::{sync::Arc, time::Duration};

use garrison_auth::caller;
use garrison_proto::alert::v1::{
    ListRankedAlertsRequest, ListRankedAlertsResponse, RecordVerdictRequest, RecordVerdictResponse, Verdict,
    verdict_service_server::VerdictService,
};
use garrison_service::audit::caller_actor;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{app::Engine, error::Error};

const LONGEST_COMMENT: usize = 1_000;
const DAY: u32 = 86_400;
const LONGEST: u32 = 30 * DAY;
const USUAL_PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 1_000;

/// Serves `garrison.alert.v1.VerdictService`.
pub struct Verdicts(pub Arc<Engine>);

#[tonic::async_trait]
impl VerdictService for Verdicts {
    async fn record_verdict(
        &self,
        request: Request<RecordVerdictRequest>,
    ) -> Result<Response<RecordVerdictResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let alert: Uuid = asked
            .alert_id
            .parse()
            .map_err(|_| Error::argument("alert_id", format!("{:?} is no UUID", asked.alert_id)))?;
        if matches!(Verdict::try_from(asked.verdict), Err(_) | Ok(Verdict::Unspecified)) {
            let problem = "say true, false or benign".to_owned();
            return Err(Error::argument("verdict", problem).into());
        }
        if asked.comment.chars().count() > LONGEST_COMMENT {
            let problem = format!("it is longer than {LONGEST_COMMENT} characters");
            return Err(Error::argument("comment", problem).into());
        }
        let said = (asked.verdict(), asked.comment.as_str());
        let actor = caller_actor(&caller);
        let ranked = self.0.record_verdict(&caller.tenant, actor, alert, said).await?;
        Ok(Response::new(RecordVerdictResponse { alert: Some(ranked) }))
    }

    async fn list_ranked_alerts(
        &self,
        request: Request<ListRankedAlertsRequest>,
    ) -> Result<Response<ListRankedAlertsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let within = match asked.within_seconds {
            0 => DAY,
            seconds if seconds <= LONGEST => seconds,
            seconds => {
                let problem = format!("{seconds} is more than {LONGEST}");
                return Err(Error::argument("within_seconds", problem).into());
            }
        };
        let most = match asked.page_size {
            0 => USUAL_PAGE,
            size => size.min(LARGEST_PAGE),
        };
        let within = Duration::from_secs(within.into());
        let alerts = self.0.ranked_alerts(&caller.tenant, within, most as usize).await?;
        Ok(Response::new(ListRankedAlertsResponse { alerts }))
    }
}
