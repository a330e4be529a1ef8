//! The alarm budget.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use garrison_auth::caller;
use garrison_proto::alert::v1::{
    GetAlarmBudgetRequest, GetAlarmBudgetResponse, ListHeldAlertsRequest, ListHeldAlertsResponse,
    ReleaseHeldAlertRequest, ReleaseHeldAlertResponse, SetAlarmBudgetRequest, SetAlarmBudgetResponse,
    budget_service_server::BudgetService,
};
use garrison_service::audit::caller_actor;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    app::{Engine, held_message},
    config::budget::ALERTS_PER_DAY,
    domain::{budget::Group, detector::Detector},
    error::Error,
    store::held::Query,
};

const LONGEST_COMMENT: usize = 1_000;
const USUAL_PAGE: i32 = 50;
const LARGEST_PAGE: i32 = 500;

/// Serves `garrison.alert.v1.BudgetService`.
pub struct Budgets(pub Arc<Engine>);

#[tonic::async_trait]
impl BudgetService for Budgets {
    async fn get_alarm_budget(
        &self,
        request: Request<GetAlarmBudgetRequest>,
    ) -> Result<Response<GetAlarmBudgetResponse>, Status> {
        let caller = caller(&request)?;
        let budgets = self.0.alarm_budgets(&caller.tenant).await?;
        Ok(Response::new(GetAlarmBudgetResponse { budgets }))
    }

    async fn set_alarm_budget(
        &self,
        request: Request<SetAlarmBudgetRequest>,
    ) -> Result<Response<SetAlarmBudgetResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let group = group(&asked.group)?;
        if !Group::PROMISED.contains(&group) {
            let problem = "matches of threat intelligence are never held back: it has no budget".to_owned();
            return Err(Error::argument("group", problem).into());
        }
        let (least, most) = ALERTS_PER_DAY;
        if let Some(n) = asked.alerts_per_day
            && !(least..=most).contains(&n)
        {
            let problem = format!("{n} is not {least} to {most}");
            return Err(Error::argument("alerts_per_day", problem).into());
        }
        let actor = caller_actor(&caller);
        let budget = self
            .0
            .set_alarm_budget(&caller.tenant, actor, group, asked.alerts_per_day)
            .await?;
        Ok(Response::new(SetAlarmBudgetResponse { budget: Some(budget) }))
    }

    async fn list_held_alerts(
        &self,
        request: Request<ListHeldAlertsRequest>,
    ) -> Result<Response<ListHeldAlertsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let size = match asked.page_size {
            0 => USUAL_PAGE,
            size if size < 0 => return Err(Error::argument("page_size", format!("{size} is negative")).into()),
            size => size.min(LARGEST_PAGE),
        };
        let group = match asked.group.as_str() {
            "" => None,
            name => Some(group(name)?),
        };
        let detector = match asked.detector.as_str() {
            "" => None,
            id if Detector::ALL.iter().any(|d| d.id() == id) => Some(id.to_owned()),
            id => return Err(Error::argument("detector", format!("{id:?} is no detector")).into()),
        };
        let list = fingerprint(asked);
        let after = match asked.page_token.as_str() {
            "" => None,
            token => Some(decode(token, list).ok_or_else(|| {
                let problem = "not a token of this list with these filters; start again without one";
                Error::argument("page_token", problem.to_owned())
            })?),
        };
        let query = Query {
            group,
            detector,
            told: asked.told,
            after,
            most: i64::from(size) + 1,
        };
        let mut kept = self.0.held_alerts(&caller.tenant, &query).await?;
        let mut next_page_token = String::new();
        if kept.len() > size as usize {
            kept.truncate(size as usize);
            next_page_token = kept
                .last()
                .map_or_else(String::new, |last| encode(last.held, last.id, list));
        }
        Ok(Response::new(ListHeldAlertsResponse {
            alerts: kept.into_iter().map(held_message).collect(),
            next_page_token,
        }))
    }

    async fn release_held_alert(
        &self,
        request: Request<ReleaseHeldAlertRequest>,
    ) -> Result<Response<ReleaseHeldAlertResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let alert: Uuid = asked
            .alert_id
            .parse()
            .map_err(|_| Error::argument("alert_id", format!("{:?} is no UUID", asked.alert_id)))?;
        if asked.comment.chars().count() > LONGEST_COMMENT {
            let problem = format!("it is longer than {LONGEST_COMMENT} characters");
            return Err(Error::argument("comment", problem).into());
        }
        let actor = caller_actor(&caller);
        let kept = self
            .0
            .release_held_alert(&caller.tenant, actor, alert, &asked.comment)
            .await?;
        Ok(Response::new(ReleaseHeldAlertResponse {
            alert: Some(held_message(kept)),
        }))
    }
}

fn group(name: &str) -> Result<Group, Error> {
    Group::of_id(name).ok_or_else(|| {
        let names = Group::ALL.map(Group::id).join(", ");
        Error::argument("group", format!("{name:?} is none of {names}"))
    })
}

// Everything that the list depends on: a token is good for the list it came from only.
fn fingerprint(asked: &ListHeldAlertsRequest) -> [u8; 8] {
    let hash = Sha256::digest(format!("{:?}", (&asked.group, &asked.detector, asked.told)));
    let mut head = [0; 8];
    head.copy_from_slice(&hash[..8]);
    head
}

fn encode(time: DateTime<Utc>, id: Uuid, list: [u8; 8]) -> String {
    let mut bytes = list.to_vec();
    bytes.extend_from_slice(&time.timestamp_micros().to_be_bytes());
    bytes.extend_from_slice(id.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(token: &str, list: [u8; 8]) -> Option<(DateTime<Utc>, Uuid)> {
    if token.len() > 64 {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let (given, rest) = bytes.split_first_chunk::<8>()?;
    let (time, id) = rest.split_first_chunk::<8>()?;
    let time = DateTime::from_timestamp_micros(i64::from_be_bytes(*time))?;
    (*given == list).then_some((time, Uuid::from_slice(id).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list() {
        let all = fingerprint(&ListHeldAlertsRequest::default());
        let of_model = fingerprint(&ListHeldAlertsRequest {
            group: "model".to_owned(),
            ..ListHeldAlertsRequest::default()
        });
        let (time, id) = (
            DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
            Uuid::from_u128(5),
        );
        let token = encode(time, id, all);
        assert_eq!(decode(&token, all), Some((time, id)));
        assert_eq!(decode(&token, of_model), None);
    }

    proptest! {
        #[test]
        fn hostile_tokens_are_refused(token in "\\PC{1,80}") {
            prop_assert_eq!(decode(&token, [0xA5; 8]), None);
        }
    }
}
