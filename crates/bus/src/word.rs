//! A word among the processes of one service: at most once, stored nowhere, without headers. For what each would find out by
//! itself a little later.

use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::{Bus, BusError};

/// What is said on a subject; see [`Bus::hear`].
pub struct Words {
    subscriber: Subscriber,
    bus: Bus,
}

impl Words {
    /// The next word. `None` when the client is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let message = self.subscriber.next().await?;
            if !self.bus.refuses_copy(&message) {
                return Some(message.payload);
            }
        }
    }
}

impl Bus {
    /// Says something to every process that listens now. While the broker is away nothing is said.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when it cannot be handed to the broker. That it is permitted nobody says.
    pub async fn say(&self, subject: &'static str, word: Bytes) -> Result<(), BusError> {
        let unavailable = |reason: String| BusError::Unavailable {
            operation: format!("say something on {subject}"),
            reason,
        };
        if !self.is_connected() {
            return Err(unavailable("there is no connection".to_owned()));
        }
        let said = self.client().publish(subject, word).await;
        said.map_err(|error| unavailable(error.to_string()))
    }

    /// Listens to what is said on a subject. Survives reconnects; what is said meanwhile is missed.
    ///
    /// # Errors
    /// [`BusError::Refused`] when the subject is malformed.
    pub async fn hear(&self, subject: &'static str) -> Result<Words, BusError> {
        let subscriber = self.client().subscribe(subject).await;
        let subscriber = subscriber.map_err(|error| BusError::Refused {
            operation: format!("listen on {subject}"),
            reason: error.to_string(),
        })?;
        Ok(Words {
            subscriber,
            bus: self.clone(),
        })
    }
}
