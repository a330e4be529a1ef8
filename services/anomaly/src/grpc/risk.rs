//! What speaks against hosts, services and users.

use garrison_auth::caller;
use garrison_proto::alert::v1::{
    EntityKind, GetEntityRiskRequest, GetEntityRiskResponse, ListEntityRisksRequest, ListEntityRisksResponse,
    risk_service_server::RiskService,
};
use tonic::{Request, Response, Status};

use crate::{app::Risks, error::Error};

const LARGEST_PAGE: u32 = 1_000;
const LONGEST_ENTITY: usize = 512;

/// Serves `garrison.alert.v1.RiskService`.
pub struct RiskApi(pub Risks);

#[tonic::async_trait]
impl RiskService for RiskApi {
    async fn list_entity_risks(
        &self,
        request: Request<ListEntityRisksRequest>,
    ) -> Result<Response<ListEntityRisksResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let mut kinds = Vec::new();
        for kind in &asked.kinds {
            kinds.push(known(*kind).ok_or_else(|| Error::argument("kinds", format!("{kind} is no kind")))?);
        }
        if !(0.0..=100.0).contains(&asked.least) {
            return Err(Error::argument("least", format!("{} is not 0 to 100", asked.least)).into());
        }
        let most = page(asked.page_size, 50);
        let risks = self.0.highest(&caller.tenant, &kinds, asked.least, most).await;
        let risks = risks.map_err(Error::from)?;
        Ok(Response::new(ListEntityRisksResponse { risks }))
    }

    async fn get_entity_risk(
        &self,
        request: Request<GetEntityRiskRequest>,
    ) -> Result<Response<GetEntityRiskResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let wrong = |problem: &str| Status::from(Error::argument("entity", problem.to_owned()));
        let entity = asked.entity.as_ref().ok_or_else(|| wrong("say whose risk"))?;
        if known(entity.kind).is_none() {
            return Err(wrong("say whether it is a host, a service or a user"));
        }
        if entity.value.is_empty() || entity.value.len() > LONGEST_ENTITY {
            return Err(wrong("say an address, a service or a login of up to 512 bytes"));
        }
        let found = self.0.of(&caller.tenant, entity, page(asked.page_size, 100)).await;
        let (risk, entries) = found.map_err(Error::from)?;
        Ok(Response::new(GetEntityRiskResponse {
            risk: Some(risk),
            entries,
        }))
    }
}

fn known(kind: i32) -> Option<i16> {
    match EntityKind::try_from(kind) {
        Err(_) | Ok(EntityKind::Unspecified) => None,
        Ok(kind) => i16::try_from(kind as i32).ok(),
    }
}

fn page(asked: u32, usual: u32) -> u32 {
    if asked == 0 { usual } else { asked.min(LARGEST_PAGE) }
}
