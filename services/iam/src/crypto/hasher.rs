use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{Output, ParamsString, PasswordHash, SaltString},
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
///
/// The memory is allocated once for each of them and kept: freed to the allocator, blocks of this size stay with the
/// arena of whichever thread had them, and a storm of logins would end up with many times the configured amount.
#[derive(Clone)]
pub struct PasswordHasher {
    params: Params,
    permits: Arc<Semaphore>,
    buffers: Arc<Mutex<Vec<Memory>>>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
    /// Hash of a random password, checked where there is no account, so that both take as long.
    dummy: Arc<str>,
}

type Memory = Vec<Block>;

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
        let mut memory = Memory::new();
        let dummy = hash_now(&params, &hex::encode(random::<32>()).into(), &mut memory)?;
        Ok(Self {
            params,
            permits: Arc::new(Semaphore::new(settings.concurrent)),
            buffers: Arc::new(Mutex::new(vec![memory])),
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
        let params = self.params.clone();
        self.run(move |memory| hash_now(&params, &password, memory)).await
    }

    /// Checks a password. Without a stored hash it does the same work and answers no.
    ///
    /// # Errors
    /// [`HashError::Busy`] when too many wait, [`HashError::Stored`] when the stored hash is not a PHC string.
    pub async fn verify(&self, password: SecretText, stored: Option<String>) -> Result<bool, HashError> {
        let dummy = Arc::clone(&self.dummy);
        self.run(move |memory| {
            let known = stored.is_some();
            let right = verify_now(stored.as_deref().unwrap_or(&dummy), &password, memory)?;
            Ok(right && known)
        })
        .await
    }

    /// Whether a stored hash was made with other parameters than today's and should be made anew.
    pub fn is_outdated(&self, stored: &str) -> bool {
        let Ok(hash) = PasswordHash::new(stored) else {
            return true;
        };
        let today = &self.params;
        hash.algorithm != Algorithm::Argon2id.ident()
            || Params::try_from(&hash).map_or(true, |params| {
                (params.m_cost(), params.t_cost(), params.p_cost()) != (today.m_cost(), today.t_cost(), today.p_cost())
            })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Memory) -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let _place = Place::take(&self.waiting, self.limit).ok_or(HashError::Busy)?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| HashError::Busy)?;
        let buffers = Arc::clone(&self.buffers);
        let usual = self.params.block_count();
        // The permit goes with the work: a caller that gives up must not free memory that is still in use.
        tokio::task::spawn_blocking(move || {
            // There are never more buffers than permits.
            let mut memory = take(&buffers);
            let result = work(&mut memory);
            if memory.len() > usual {
                // A hash of stronger parameters than today's was checked.
                memory.truncate(usual);
                memory.shrink_to_fit();
            }
            buffers.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
            drop(permit);
            result
        })
        .await?
    }
}

fn take(buffers: &Mutex<Vec<Memory>>) -> Memory {
    let mut buffers = buffers.lock().unwrap_or_else(PoisonError::into_inner);
    buffers.pop().unwrap_or_default()
}

impl fmt::Debug for PasswordHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHasher")
            .field("params", &self.params)
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

fn hash_now(params: &Params, password: &SecretText, memory: &mut Memory) -> Result<String, HashError> {
    let salt = SaltString::encode_b64(&random::<16>()).map_err(HashError::Stored)?;
    let mut raw_salt = [0; 64];
    let raw_salt = salt.decode_b64(&mut raw_salt).map_err(HashError::Stored)?;
    let output = argon2id(params, password, raw_salt, Params::DEFAULT_OUTPUT_LEN, memory)?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(params).map_err(HashError::Stored)?,
        salt: Some(salt.as_salt()),
        hash: Some(output),
    };
    Ok(hash.to_string())
}

fn verify_now(stored: &str, password: &SecretText, memory: &mut Memory) -> Result<bool, HashError> {
    let hash = PasswordHash::new(stored).map_err(HashError::Stored)?;
    let unreadable = || HashError::Stored(argon2::password_hash::Error::PhcStringField);
    if hash.algorithm != Algorithm::Argon2id.ident() || hash.version != Some(Version::V0x13.into()) {
        return Err(HashError::Stored(argon2::password_hash::Error::Algorithm));
    }
    let params = Params::try_from(&hash).map_err(HashError::Stored)?;
    let expected = hash.hash.ok_or_else(unreadable)?;
    let mut raw = [0; 64];
    let salt = hash.salt.ok_or_else(unreadable)?;
    let salt = salt.decode_b64(&mut raw).map_err(HashError::Stored)?;
    let output = argon2id(&params, password, salt, expected.len(), memory)?;
    // `Output` compares in constant time.
    Ok(output == expected)
}

fn argon2id(
    params: &Params,
    password: &SecretText,
    salt: &[u8],
    length: usize,
    memory: &mut Memory,
) -> Result<Output, HashError> {
    let blocks = params.block_count();
    if memory.len() < blocks {
        // A buffer of the wrong size is dropped before the right one is made, not copied.
        *memory = Memory::new();
        memory.resize(blocks, Block::new());
    }
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    Output::init_with(length, |out| {
        argon2
            .hash_password_into_with_memory(password.expose().as_bytes(), salt, out, &mut memory[..blocks])
            .map_err(Into::into)
    })
    .map_err(HashError::Stored)
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
    async fn hashes_as_others_do() {
        use argon2::{PasswordHasher as _, PasswordVerifier as _};
        let ours = PasswordHasher::new(SMALL).unwrap();
        let other = Argon2::new(Algorithm::Argon2id, Version::V0x13, ours.params.clone());
        let made = ours.hash(SecretText::new("correct horse")).await.unwrap();
        let made = PasswordHash::new(&made).unwrap();
        assert!(other.verify_password(b"correct horse", &made).is_ok());
        assert!(other.verify_password(b"correct house", &made).is_err());
        let salt = SaltString::encode_b64(b"sixteen salt byt").unwrap();
        let theirs = other.hash_password(b"correct horse", &salt).unwrap().to_string();
        assert!(
            ours.verify(SecretText::new("correct horse"), Some(theirs.clone()))
                .await
                .unwrap()
        );
        assert!(
            !ours
                .verify(SecretText::new("correct house"), Some(theirs))
                .await
                .unwrap()
        );
        for broken in [
            "",
            "$argon2id$v=19$m=64,t=1,p=1",
            "$argon2i$v=19$m=64,t=1,p=1$c2l4dGVlbiBzYWx0$AAAAAAAAAAAAAAAA",
        ] {
            let result = ours.verify(SecretText::new("x"), Some(broken.to_owned())).await;
            assert!(matches!(result, Err(HashError::Stored(_))), "{broken:?}: {result:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn there_are_never_more_buffers_than_hashes_at_a_time() {
        let hasher = PasswordHasher::new(HasherSettings {
            concurrent: 2,
            queue: 100,
            ..SMALL
        })
        .unwrap();
        let stronger = PasswordHasher::new(HasherSettings {
            memory_kib: 256,
            ..SMALL
        })
        .unwrap();
        let strong = stronger.hash(SecretText::new("correct horse")).await.unwrap();
        let work =
            (0..60).map(|n| hasher.verify(SecretText::new("correct horse"), (n % 3 == 0).then(|| strong.clone())));
        let results = futures::future::join_all(work).await;
        assert_eq!(results.iter().filter(|r| matches!(r, Ok(true))).count(), 20);
        let buffers = hasher.buffers.lock().unwrap();
        assert!((1..=2).contains(&buffers.len()), "{}", buffers.len());
        assert!(buffers.iter().all(|memory| memory.capacity() <= 64));
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
