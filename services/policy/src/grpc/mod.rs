//! The gRPC server: convert, call the use case, convert.

mod convert;
mod page;

use std::{net::IpAddr, sync::Arc};

use garrison_auth::caller;
use garrison_proto::policy::v1::{self as proto, policy_service_server::PolicyService};
use garrison_ztp::is_name;
use tonic::{Request, Response, Status};

use crate::{
    app::{App, Verdict},
    error::Error,
};
use page::Page;

/// `garrison.policy.v1.PolicyService`.
pub struct PolicyApi {
    /// The use cases.
    pub app: Arc<App>,
}

/// A policy's name, bare or as `policies/{name}`.
fn policy_name(given: &str) -> Result<&str, Error> {
    let name = given.strip_prefix("policies/").unwrap_or(given);
    if is_name(name) {
        Ok(name)
    } else {
        Err(Error::field(
            "name",
            "write the policy's name, as in `policies/database`",
        ))
    }
}

fn address(field: &'static str, given: &str) -> Result<IpAddr, Error> {
    given
        .parse()
        .map_err(|_| Error::field(field, "write an IP address, such as 10.0.0.5"))
}

#[tonic::async_trait]
impl PolicyService for PolicyApi {
    async fn apply_policy(
        &self,
        request: Request<proto::ApplyPolicyRequest>,
    ) -> Result<Response<proto::ApplyPolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let applied = self
            .app
            .apply(&caller, request.document, request.expected_version)
            .await?;
        Ok(Response::new(proto::ApplyPolicyResponse {
            policy: Some(convert::policy(applied.policy)),
            diagnostics: applied.diagnostics.into_iter().map(convert::diagnostic).collect(),
            unchanged: applied.unchanged,
        }))
    }

    async fn get_policy(
        &self,
        request: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::GetPolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = policy_name(&request.name)?;
        let policy = self.app.get(&caller.tenant, name, request.version).await?;
        Ok(Response::new(proto::GetPolicyResponse {
            policy: Some(convert::policy(policy)),
        }))
    }

    async fn list_policies(
        &self,
        request: Request<proto::ListPoliciesRequest>,
    ) -> Result<Response<proto::ListPoliciesResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let page = Page::read(request.page_size, &request.page_token, &(&caller.tenant, "policies"))?;
        let found = self.app.list(&caller.tenant, &page.after, page.limit()).await?;
        let (policies, next_page_token) = page.cut(found, |policy| policy.name.clone());
        Ok(Response::new(proto::ListPoliciesResponse {
            policies: policies.into_iter().map(convert::policy).collect(),
            next_page_token,
        }))
    }

    async fn list_policy_versions(
        &self,
        request: Request<proto::ListPolicyVersionsRequest>,
    ) -> Result<Response<proto::ListPolicyVersionsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = policy_name(&request.name)?;
        let page = Page::read(
            request.page_size,
            &request.page_token,
            &(&caller.tenant, "versions", name),
        )?;
        let before = match page.after.as_str() {
            "" => 0,
            after => after
                .parse()
                .map_err(|_| Error::field("page_token", "not a token of this list; start again without one"))?,
        };
        let found = self.app.versions(&caller.tenant, name, before, page.limit()).await?;
        let (policies, next_page_token) = page.cut(found, |policy| policy.version.to_string());
        Ok(Response::new(proto::ListPolicyVersionsResponse {
            policies: policies.into_iter().map(convert::policy).collect(),
            next_page_token,
        }))
    }

    async fn delete_policy(
        &self,
        request: Request<proto::DeletePolicyRequest>,
    ) -> Result<Response<proto::DeletePolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.app.delete(&caller, policy_name(&request.name)?).await?;
        Ok(Response::new(proto::DeletePolicyResponse {}))
    }

    async fn list_policy_reviews(
        &self,
        request: Request<proto::ListPolicyReviewsRequest>,
    ) -> Result<Response<proto::ListPolicyReviewsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let page = Page::read(request.page_size, &request.page_token, &(&caller.tenant, "reviews"))?;
        let found = self.app.reviews(&caller.tenant, &page.after, page.limit()).await?;
        let (policies, next_page_token) = page.cut(found, |policy| policy.name.clone());
        Ok(Response::new(proto::ListPolicyReviewsResponse {
            policies: policies.into_iter().map(convert::policy).collect(),
            next_page_token,
        }))
    }

    async fn approve_policy(
        &self,
        request: Request<proto::ApprovePolicyRequest>,
    ) -> Result<Response<proto::ApprovePolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let verdict = Verdict {
            name: policy_name(&request.name)?,
            version: request.version,
            sha256: &request.sha256,
            note: &request.note,
            approved: true,
        };
        let policy = self.app.review(&caller, &verdict).await?;
        Ok(Response::new(proto::ApprovePolicyResponse {
            policy: Some(convert::policy(policy)),
        }))
    }

    async fn reject_policy(
        &self,
        request: Request<proto::RejectPolicyRequest>,
    ) -> Result<Response<proto::RejectPolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let verdict = Verdict {
            name: policy_name(&request.name)?,
            version: request.version,
            sha256: &request.sha256,
            note: &request.note,
            approved: false,
        };
        let policy = self.app.review(&caller, &verdict).await?;
        Ok(Response::new(proto::RejectPolicyResponse {
            policy: Some(convert::policy(policy)),
        }))
    }

    async fn check_policy(
        &self,
        request: Request<proto::CheckPolicyRequest>,
    ) -> Result<Response<proto::CheckPolicyResponse>, Status> {
        caller(&request)?;
        let checked = self.app.check(request.into_inner().document).await?;
        Ok(Response::new(proto::CheckPolicyResponse {
            valid: checked.is_valid(),
            diagnostics: checked.diagnostics.into_iter().map(convert::diagnostic).collect(),
        }))
    }

    async fn compile_policy(
        &self,
        request: Request<proto::CompilePolicyRequest>,
    ) -> Result<Response<proto::CompilePolicyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let nftables = match request.target() {
            proto::Target::KubernetesNetworkPolicy => false,
            proto::Target::Nftables => true,
            proto::Target::Unspecified => {
                let message = "name a target: Kubernetes NetworkPolicy or nftables";
                return Err(Error::field("target", message).into());
            }
        };
        let compiled = self.app.compile(&caller.tenant, request.document, nftables).await?;
        Ok(Response::new(convert::compiled(compiled)))
    }

    async fn explain_connection(
        &self,
        request: Request<proto::ExplainConnectionRequest>,
    ) -> Result<Response<proto::ExplainConnectionResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let src = address("src_ip", &request.src_ip)?;
        let dst = address("dst_ip", &request.dst_ip)?;
        let protocol = u8::try_from(request.protocol)
            .map_err(|_| Error::field("protocol", "write an IP protocol number, 0 to 255, such as 6 for TCP"))?;
        let port = u16::try_from(request.dst_port).map_err(|_| Error::field("dst_port", "write a port, 0 to 65535"))?;
        let explanation = self.app.explain(&caller.tenant, src, dst, protocol, port).await?;
        Ok(Response::new(convert::explanation(explanation)))
    }

    async fn list_verdict_counts(
        &self,
        request: Request<proto::ListVerdictCountsRequest>,
    ) -> Result<Response<proto::ListVerdictCountsResponse>, Status> {
        let caller = caller(&request)?;
        let counts = self.app.counts(&caller.tenant).await?;
        Ok(Response::new(proto::ListVerdictCountsResponse {
            counts: counts.into_iter().map(convert::count).collect(),
        }))
    }
}
