use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{PasswordHash, SaltString},
};
use tokio::sync::Semaphore;

use super::random;
use crate::domain::SecretText;

/// How passwords are hashed, and how many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HasherSettings {
    /// Memory of one hash, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
    /// Hashes at a time: bounds memory to this many times `memory_kib`.
    pub concurrent: usize,
    /// Hashes that may wait. One more is refused.
    pub queue: usize,
}

/// Hashes and checks passwords with Argon2id (RFC 9106) on a bounded number of threads.
#[derive(Clone)]
pub struct PasswordHasher {
    argon2: Argon2<'static>,
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
    /// Hash of a random password, checked where there is no account, so that both take as long.
    dummy: Arc<str>,
}

/// A hash could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Too many are waiting.
    #[error("too many logins are waiting")]
    Busy,
    /// The parameters are outside what Argon2 takes.
    #[error("the Argon2 parameters do not fit together: {0}")]
    Parameters(argon2::Error),
    /// A stored hash has no known form.
    #[error("a stored password hash cannot be read: {0}")]
    Stored(argon2::password_hash::Error),
    /// The thread that hashed died.
    #[error("the hashing thread ended")]
    Thread(#[from] tokio::task::JoinError),
}

impl PasswordHasher {
    /// A hasher with these parameters.
    ///
    /// # Errors
    /// [`HashError::Parameters`] when Argon2 does not take them.
    pub fn new(settings: HasherSettings) -> Result<Self, HashError> {
        let params = Params::new(settings.memory_kib, settings.iterations, settings.parallelism, None)
            .map_err(HashError::Parameters)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy = hash_now(&argon2, &hex::encode(random::<32>()).into())?;
        Ok(Self {
            argon2,
            permits: Arc::new(Semaphore::new(settings.concurrent)),
            waiting: Arc::default(),
            limit: settings.concurrent + settings.queue,
            dummy: dummy.into(),
        })
    }

    /// Hashes a new password to a PHC string.
    ///
    /// # Errors
    /// [`HashError::Busy`] when too many wait.
    pub async fn hash(&self, password: SecretText) -> Result<String, HashError> {
        let argon2 = self.argon2.clone();
        self.run(move || hash_now(&argon2, &password)).await
    }

    /// Checks a password. Without a stored hash it does the same work and answers no.
    ///
    /// # Errors
    /// [`HashError::Busy`] when too many wait, [`HashError::Stored`] when the stored hash is not a PHC string.
    pub async fn verify(&self, password: SecretText, stored: Option<String>) -> Result<bool, HashError> {
        let (argon2, dummy) = (self.argon2.clone(), Arc::clone(&self.dummy));
        self.run(move || {
            let known = stored.is_some();
            let hash = PasswordHash::new(stored.as_deref().unwrap_or(&dummy)).map_err(HashError::Stored)?;
            let right = argon2.verify_password(password.expose().as_bytes(), &hash).is_ok();
            Ok(right && known)
        })
        .await
    }

    /// Whether a stored hash was made with other parameters than today's and should be made anew.
    pub fn is_outdated(&self, stored: &str) -> bool {
        let Ok(hash) = PasswordHash::new(stored) else {
            return true;
        };
        let today = self.argon2.params();
        hash.algorithm != Algorithm::Argon2id.ident()
            || Params::try_from(&hash).map_or(true, |params| {
                (params.m_cost(), params.t_cost(), params.p_cost()) != (today.m_cost(), today.t_cost(), today.p_cost())
            })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let _place = Place::take(&self.waiting, self.limit).ok_or(HashError::Busy)?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| HashError::Busy)?;
        // The permit goes with the work: a caller that gives up must not free memory that is still in use.
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await?
    }
}

impl fmt::Debug for PasswordHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHasher")
            .field("params", self.argon2.params())
            .finish_non_exhaustive()
    }
}

/// One of the bounded places of those that hash or wait for it.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                (taken < limit).then_some(taken + 1)
            })
            .ok()
            .map(|_| Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn hash_now(argon2: &Argon2<'_>, password: &SecretText) -> Result<String, HashError> {
    let salt = SaltString::encode_b64(&random::<16>()).map_err(HashError::Stored)?;
    let hash = argon2
        .hash_password(password.expose().as_bytes(), &salt)
        .map_err(HashError::Stored)?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: HasherSettings = HasherSettings {
        memory_kib: 64,
        iterations: 1,
        parallelism: 1,
        concurrent: 1,
        queue: 1,
    };

    #[tokio::test]
    async fn takes_the_right_password_only_and_salts_each_hash() {
        let hasher = PasswordHasher::new(SMALL).unwrap();
        let first = hasher.hash("correct horse".to_owned().into()).await.unwrap();
        let second = hasher.hash("correct horse".to_owned().into()).await.unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{first}");
        assert_ne!(first, second);
        let verify = |password: &str, stored: Option<&str>| {
            let (hasher, password, stored) = (hasher.clone(), SecretText::new(password), stored.map(str::to_owned));
            async move { hasher.verify(password, stored).await.unwrap() }
        };
        assert!(verify("correct horse", Some(&first)).await);
        assert!(!verify("correct  horse", Some(&first)).await);
        assert!(!verify("correct horse", None).await);
    }

    #[tokio::test]
    async fn notices_changed_parameters_and_still_takes_the_old_hash() {
        let old = PasswordHasher::new(SMALL).unwrap();
        let new = PasswordHasher::new(HasherSettings { iterations: 2, ..SMALL }).unwrap();
        let stored = old.hash("correct horse".to_owned().into()).await.unwrap();
        assert!(!old.is_outdated(&stored));
        assert!(new.is_outdated(&stored));
        assert!(new.is_outdated("$2b$12$somethingelse"));
        assert!(
            new.verify("correct horse".to_owned().into(), Some(stored))
                .await
                .unwrap()
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_storm_is_refused_beyond_the_queue() {
        let hasher = PasswordHasher::new(HasherSettings {
            memory_kib: 8 * 1024,
            iterations: 3,
            ..SMALL
        })
        .unwrap();
        let storm = (0..20).map(|_| hasher.verify(SecretText::new("x"), None));
        let results = futures::future::join_all(storm).await;
        let busy = results.iter().filter(|r| matches!(r, Err(HashError::Busy))).count();
        let answered = results.iter().filter(|r| matches!(r, Ok(false))).count();
        assert_eq!((answered, busy), (2, 18));
        // The places are free again.
        assert!(!hasher.verify(SecretText::new("x"), None).await.unwrap());
    }
}
