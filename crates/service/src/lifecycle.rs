//! Supervised tasks and stopping in two stages: first no new work, then an end to what is under way.

use std::{borrow::Cow, collections::HashMap, future::Future, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{BoxError, ServiceError};

/// The two stages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stages {
    /// Stop taking work.
    pub(crate) stop: CancellationToken,
    /// Stop at once.
    pub(crate) abort: CancellationToken,
}

impl Stages {
    /// The first SIGTERM or SIGINT begins the first stage, the second one the second.
    pub(crate) fn follow_signals(&self) -> Result<(), ServiceError> {
        let failed = |source| ServiceError::Process {
            what: "handling signals",
            source,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let stages = self.clone();
        tokio::spawn(async move {
            for stage in [&stages.stop, &stages.abort] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!(second = stages.stop.is_cancelled(), "asked to stop");
                stage.cancel();
            }
        });
        Ok(())
    }
}

/// Tasks whose failure ends the service.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    tasks: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, Cow<'static, str>>,
}

impl Supervisor {
    pub(crate) fn spawn<F, E>(&mut self, name: impl Into<Cow<'static, str>>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name.into());
    }

    /// Runs until the service is asked to stop and every task has ended. A failure begins the first stage. Once that has begun, what is left has
    /// `drain` to finish; then, or at the second stage, it is cut off.
    pub(crate) async fn supervise(mut self, stages: &Stages, drain: Duration) -> Result<(), ServiceError> {
        let mut failure = None;
        let deadline = async {
            stages.stop.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(drain) => {}
                () = stages.abort.cancelled() => {}
            }
        };
        tokio::pin!(deadline);
        loop {
            let joined = tokio::select! {
                () = &mut deadline => break,
                joined = self.tasks.join_next_with_id() => joined,
            };
            let Some(joined) = joined else {
                // Nothing is left to watch; the service still lives until it is asked to stop.
                stages.stop.cancelled().await;
                return failure.map_or(Ok(()), Err);
            };
            if let Err(error) = self.ended(joined) {
                stages.stop.cancel();
                // The first failure is the cause; what follows from it is only logged.
                match failure {
                    None => failure = Some(error),
                    Some(_) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "while stopping")
                    }
                }
            }
        }
        let mut left: Vec<_> = self.names.values().cloned().collect();
        left.sort_unstable();
        self.tasks.shutdown().await;
        let error = failure.unwrap_or(ServiceError::Drain { tasks: left });
        Err(error)
    }

    fn ended(&mut self, joined: Result<(Id, Result<(), BoxError>), JoinError>) -> Result<(), ServiceError> {
        match joined {
            Ok((id, result)) => {
                let name = self.names.remove(&id).unwrap_or(Cow::Borrowed("unnamed"));
                tracing::debug!(task = %name, "ended");
                result.map_err(|source| ServiceError::Task { name, source })
            }
            Err(error) => {
                let name = self.names.remove(&error.id()).unwrap_or(Cow::Borrowed("unnamed"));
                let message = match error.try_into_panic() {
                    Ok(panic) => panic
                        .downcast_ref::<&str>()
                        .map(ToString::to_string)
                        .or_else(|| panic.downcast_ref::<String>().cloned())
                        .unwrap_or_else(|| "without a message".to_owned()),
                    Err(error) => error.to_string(),
                };
                Err(ServiceError::Panic { name, message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn work_under_way_is_finished() {
        let (stages, mut supervisor) = (Stages::default(), Supervisor::default());
        let stop = stages.stop.clone();
        supervisor.spawn("worker", async move {
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<(), BoxError>(())
        });
        stages.stop.cancel();
        assert!(supervisor.supervise(&stages, LONG).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_is_cut_off_and_named() {
        let (stages, mut supervisor) = (Stages::default(), Supervisor::default());
        supervisor.spawn("stuck", std::future::pending::<Result<(), BoxError>>());
        stages.stop.cancel();
        let result = supervisor.supervise(&stages, Duration::from_secs(2)).await;
        assert!(matches!(result, Err(ServiceError::Drain { tasks }) if tasks == ["stuck"]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_stage_does_not_wait() {
        let (stages, mut supervisor) = (Stages::default(), Supervisor::default());
        supervisor.spawn("stuck", std::future::pending::<Result<(), BoxError>>());
        stages.stop.cancel();
        stages.abort.cancel();
        let began = tokio::time::Instant::now();
        assert!(supervisor.supervise(&stages, LONG).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_or_a_panic_stops_the_rest_and_is_the_result() {
        let (stages, mut supervisor) = (Stages::default(), Supervisor::default());
        let stop = stages.stop.clone();
        supervisor.spawn("well", async move {
            stop.cancelled().await;
            Ok::<(), BoxError>(())
        });
        supervisor.spawn("ill", async { Err::<(), BoxError>("no more".into()) });
        let error = supervisor.supervise(&stages, LONG).await.unwrap_err();
        assert!(
            matches!(&error, ServiceError::Task { name, .. } if name == "ill"),
            "{error}"
        );

        let (stages, mut supervisor) = (Stages::default(), Supervisor::default());
        supervisor.spawn("ill", async {
            if stages_are_fine() {
                panic!("so it goes");
            }
            Ok::<(), BoxError>(())
        });
        let error = supervisor.supervise(&stages, LONG).await.unwrap_err();
        assert!(
            matches!(&error, ServiceError::Panic { name, message } if name == "ill" && message == "so it goes"),
            "{error}"
        );
    }

    fn stages_are_fine() -> bool {
        true
    }
}
