//! Lends S3's credentials to requests: fetched once for all stores with the same settings, again
//! before they expire, and again when the store says that they have.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::chain::{self, Source};
use super::keys::{CredentialError, Lent};
use super::profile::Profiles;
use super::service;
use crate::store::{StoreOptions, secrets};

/// Credentials are renewed so long before they expire, if they live twice as long.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// Whoever has just failed is not asked again for so long, while the old credentials are still
/// good.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Where the store refuses what was just renewed, nobody is asked again for so long.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);

/// The credentials in use.
#[derive(Debug, Clone)]
struct Held {
    lent: Lent,
    /// From when on others are fetched.
    renew_at: Option<DateTime<Utc>>,
}

/// Lends the credentials that some settings lead to.
#[derive(Debug)]
pub(in crate::store) struct Lender {
    options: StoreOptions,
    /// The settings that decide, as they were.
    settings: BTreeMap<String, String>,
    held: Mutex<Option<Held>>,
    /// Held by who fetches.
    fetching: tokio::sync::Mutex<Fetching>,
}

/// When credentials were asked for last.
#[derive(Debug, Default)]
struct Fetching {
    /// Because they expire soon, and in vain.
    failed: Option<Instant>,
    /// Because the store refused them, or may have.
    refused: Option<Instant>,
}

/// All lenders in use, so that stores with the same settings share one.
static LENDERS: Mutex<Vec<Weak<Lender>>> = Mutex::new(Vec::new());

impl Lender {
    /// The lender for these settings; `None` if they lead to no credentials. What can be said
    /// without asking anybody is said here.
    pub(in crate::store) fn of(
        options: &StoreOptions,
    ) -> Result<Option<Arc<Self>>, CredentialError> {
        if chain::find(options)?.is_none() {
            return Ok(None);
        }
        let mut settings = options.with_prefix("AWS_");
        settings.extend(options.get("HOME").map(|home| ("HOME".to_owned(), home)));
        let mut lenders = LENDERS.lock().unwrap_or_else(PoisonError::into_inner);
        lenders.retain(|lender| lender.strong_count() > 0);
        let known = lenders.iter().filter_map(Weak::upgrade);
        if let Some(lender) = known.into_iter().find(|lender| lender.settings == settings) {
            return Ok(Some(lender));
        }
        let lender = Arc::new(Self {
            options: options.clone(),
            settings,
            held: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        });
        lenders.push(Arc::downgrade(&lender));
        Ok(Some(lender))
    }

    fn held(&self) -> Option<Held> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn credential(&self) -> Result<Arc<AwsCredential>, CredentialError> {
        let is_due = |held: &Held| held.renew_at.is_some_and(|at| at <= Utc::now());
        let is_good = |held: &Held| held.lent.expires.is_none_or(|at| at > Utc::now());
        let mut last = match self.held() {
            Some(held) if !is_due(&held) => return Ok(held.lent.credential),
            // Others go on with the old ones while one fetches.
            Some(held) if is_good(&held) => match self.fetching.try_lock() {
                Ok(last) => last,
                Err(_) => return Ok(held.lent.credential),
            },
            _ => self.fetching.lock().await,
        };
        let old = self.held();
        if let Some(held) = &old
            && (!is_due(held)
                || (is_good(held) && last.failed.is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER)))
        {
            return Ok(Arc::clone(&held.lent.credential));
        }
        match (self.fetch().await, old) {
            (Ok(credential), _) => Ok(credential),
            (Err(error), Some(held)) if is_good(&held) => {
                last.failed = Some(Instant::now());
                let error = crate::store::full_text(&error);
                tracing::warn!(
                    "the credentials cannot be renewed yet, the old ones are still good: {error}"
                );
                Ok(held.lent.credential)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Other credentials than those that the store has refused, as it says or, if it `is_guessed`,
    /// as it may have; `None` if there are none.
    pub(in crate::store) async fn renewed(
        &self,
        refused_id: &str,
        refused_token: Option<&str>,
        is_guessed: bool,
    ) -> Option<Arc<AwsCredential>> {
        let is_other = |credential: &AwsCredential| {
            credential.key_id != refused_id || credential.token.as_deref() != refused_token
        };
        let mut last = self.fetching.lock().await;
        let held = self.held().map(|held| held.lent.credential);
        if let Some(held) = held.filter(|held| is_other(held)) {
            return Some(held);
        }
        if last.refused.is_some_and(|at| at.elapsed() < REFUSED_AGAIN) {
            return None;
        }
        last.refused = Some(Instant::now());
        let fetched = self.fetch().await;
        if let Err(error) = &fetched
            && !is_guessed
        {
            let error = crate::store::full_text(error);
            tracing::warn!(
                "the store says that the credentials have expired, and there are no others: {error}"
            );
        }
        let renewed = fetched.ok().filter(|fetched| is_other(fetched));
        if renewed.is_some() {
            tracing::info!("the credentials have expired and were renewed");
        }
        renewed
    }

    /// Fetches credentials from where the settings and files now say, and keeps them.
    async fn fetch(&self) -> Result<Arc<AwsCredential>, CredentialError> {
        let source = chain::find(&self.options)?.ok_or_else(|| CredentialError::EmptyProfile {
            profile: Profiles::chosen(&self.options).0,
        })?;
        let lent = match source {
            Source::Keys(keys) => Lent {
                credential: keys.0,
                expires: None,
            },
            source => service::lend(&source, &self.options).await?,
        };
        let credential = Arc::clone(&lent.credential);
        for text in [Some(&credential.secret_key), credential.token.as_ref()]
            .into_iter()
            .flatten()
        {
            secrets::remember(text);
        }
        let renew_at = lent.expires.map(|expires| {
            let life = (expires - Utc::now()).to_std().unwrap_or_default();
            expires - RENEW_BEFORE.min(life / 2)
        });
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(Held { lent, renew_at });
        Ok(credential)
    }
}

#[async_trait]
impl CredentialProvider for Lender {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.credential()
            .await
            .map_err(|error| object_store::Error::Unauthenticated {
                path: String::new(),
                source: Box::new(error),
            })
    }
}
