//! `FlowSearchService`.

use std::pin::Pin;

use garrison_auth::caller;
use garrison_flow::{Filter, FlowBatch};
use garrison_proto::{
    flow::v1::Flow,
    forensics::v1::{
        SearchFlowsRequest, SearchFlowsResponse, SearchStats, flow_search_service_server::FlowSearchService,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    app::search::{Part, Searcher},
    error::Error,
    lake::search::Query,
};

/// Flows in one message.
const PAGE: usize = 500;

/// Searches over gRPC.
pub struct FlowSearch {
    /// Searches.
    pub searcher: Searcher,
    /// Flows in one answer at most.
    pub max_flows: usize,
    /// Flows that one search may remember.
    pub max_candidates: usize,
}

type Answers = Pin<Box<dyn Stream<Item = Result<SearchFlowsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl FlowSearchService for FlowSearch {
    type SearchFlowsStream = Answers;

    async fn search_flows(&self, request: Request<SearchFlowsRequest>) -> Result<Response<Answers>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let filter = Filter::compile(&request.filter.unwrap_or_default()).map_err(Error::from)?;
        let limit = match request.limit as usize {
            0 => self.max_flows,
            limit => limit.min(self.max_flows),
        };
        let query = Query {
            filter,
            limit,
            max_candidates: self.max_candidates,
        };
        let (answers, receiver) = mpsc::channel(2);
        let searcher = self.searcher.clone();
        tokio::spawn(async move {
            let (sender, mut parts) = mpsc::channel(2);
            let search = searcher.search(&tenant, query, sender);
            // Dropping `parts`, because the client has gone, ends the search.
            let forward = async {
                while let Some(part) = parts.recv().await {
                    for message in messages(part) {
                        if answers.send(Ok(message)).await.is_err() {
                            parts.close();
                            return;
                        }
                    }
                }
            };
            // The search may find nothing for long while the client leaves.
            tokio::select! {
                (outcome, ()) = async { tokio::join!(search, forward) } => {
                    if let Err(error) = outcome {
                        let _ = answers.send(Err(error.into())).await;
                    }
                }
                () = answers.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn messages(part: Part) -> Vec<SearchFlowsResponse> {
    match part {
        Part::Flows(batch) => {
            let flows = flows(&batch);
            flows
                .chunks(PAGE)
                .map(|page| SearchFlowsResponse {
                    flows: page.to_vec(),
                    stats: None,
                })
                .collect()
        }
        Part::Done(stats) => {
            let stats = SearchStats {
                files_read: stats.files_read,
                files_skipped: stats.files_skipped,
                rows_read: stats.rows_read,
                truncated: stats.truncated,
            };
            vec![SearchFlowsResponse {
                flows: Vec::new(),
                stats: Some(stats),
            }]
        }
    }
}

fn flows(batch: &FlowBatch) -> Vec<Flow> {
    batch.rows().map(|row| row.to_proto()).collect()
}
