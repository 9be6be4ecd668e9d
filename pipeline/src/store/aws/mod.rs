//! S3's settings: environment variables first, then the profile in `~/.aws`; credentials by
//! Amazon's whole chain, renewed before they expire and when the store says that they have.
mod chain;
mod keys;
mod lender;
mod profile;
mod service;

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

pub use keys::CredentialError;
use keys::ENDPOINT_VARIABLES;
pub(super) use lender::Lender;
use profile::Profiles;

use super::{Location, Provider, StoreOptions, endpoint};
use crate::StoreError;

/// A builder with credentials, region and endpoint set, and who lends the credentials if requests
/// are signed.
pub(super) fn builder(
    location: &Location,
    options: &StoreOptions,
) -> Result<(AmazonS3Builder, Option<Arc<Lender>>), StoreError> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in options.with_prefix("AWS_") {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(&location.bucket);
    let lender = if is_on(&builder, AmazonS3ConfigKey::SkipSignature) {
        None
    } else {
        let lender = Lender::of(options).map_err(|source| StoreError::Credentials {
            url: location.display(),
            source,
        })?;
        let lender = lender.ok_or_else(|| StoreError::NoCredentials {
            url: location.display(),
            provider: Provider::Aws,
        })?;
        builder = builder.with_credentials(Arc::clone(&lender) as _);
        Some(lender)
    };
    let profiles = Profiles::read(options);
    let (profile, _) = Profiles::chosen(options);
    if builder
        .get_config_value(&AmazonS3ConfigKey::Region)
        .is_none()
        && let Some(region) = profiles.get(&profile, "region")
    {
        builder = builder.with_region(region);
    }
    let mut own = endpoint::own_endpoint(&ENDPOINT_VARIABLES, location, options)?;
    if own.is_none()
        && let Some(value) = profiles.endpoint(&profile, "s3")
    {
        own = Some(endpoint::parse(
            value,
            "endpoint_url (~/.aws/config)",
            location,
        )?);
    }
    if is_on(&builder, AmazonS3ConfigKey::VirtualHostedStyleRequest) {
        own = own
            .map(|own| endpoint::with_bucket(own, location))
            .transpose()?;
    }
    if let Some((key, value)) = endpoint::allow_http(own.as_ref()) {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    if let Some(own) = own {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint::trimmed(&own));
    }
    Ok((builder, lender))
}

/// Whether a switch is on, in any of the words that the store takes for it.
fn is_on(builder: &AmazonS3Builder, key: AmazonS3ConfigKey) -> bool {
    const WORDS: [&str; 5] = ["1", "true", "on", "yes", "y"];
    builder
        .get_config_value(&key)
        .is_some_and(|value| WORDS.contains(&value.to_ascii_lowercase().as_str()))
}
