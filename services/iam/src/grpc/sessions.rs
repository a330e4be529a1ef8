use garrison_auth::caller;
use garrison_proto::{
    iam::v1::{
        ListSessionsRequest, ListSessionsResponse, RevokeSessionRequest, RevokeSessionResponse,
        session_service_server::SessionService,
    },
    parse_name,
};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::{app::SessionSelection, error::Error};

#[tonic::async_trait]
impl SessionService for Api {
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let caller = caller(&request)?;
        let user = match request.into_inner().user.as_str() {
            "" => None,
            name => Some(convert::user_id("user", name)?),
        };
        let sessions = self.iam.list_sessions(&caller, user).await?;
        Ok(Response::new(ListSessionsResponse {
            sessions: sessions.into_iter().map(convert::session).collect(),
        }))
    }

    async fn revoke_session(
        &self,
        request: Request<RevokeSessionRequest>,
    ) -> Result<Response<RevokeSessionResponse>, Status> {
        let caller = caller(&request)?;
        let RevokeSessionRequest { name, user } = request.into_inner();
        let selection = match (name.as_str(), user.as_str()) {
            (name, "") if !name.is_empty() => {
                let id = parse_name("sessions", name).map_err(|problem| Error::field("name", problem))?;
                SessionSelection::Session(id)
            }
            ("", user) if !user.is_empty() => SessionSelection::User(convert::user_id("user", user)?),
            _ => return Err(Error::field("name", "give either a session or a user").into()),
        };
        let revoked = self.iam.revoke_sessions(&caller, selection).await?;
        Ok(Response::new(RevokeSessionResponse {
            revoked: u32::try_from(revoked).unwrap_or(u32::MAX),
        }))
    }
}
