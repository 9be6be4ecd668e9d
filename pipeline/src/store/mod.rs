//! URLs to object stores: local paths, `file://`, `s3://`, `gs://`, `az://`, `http(s)://`.
//!
//! [`open_url`] serves whoever reads or writes one object or prefix (shards, checkpoints); [`list`] turns globs and
//! prefixes into sorted objects for [`crate::Dataset`]. Credentials, region and endpoint come from the environment
//! variables of each cloud; nothing secret ever reaches a message.

mod aws;
mod cause;
mod http_client;
pub mod list;
mod options;
mod url;

use std::sync::Arc;
use std::time::Duration;

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig, path::Path,
};

pub use cause::{classify, full_text, redact};
pub use http_client::{CountingConnector, HttpCounters};
pub use options::StoreOptions;
pub use url::{Location, Provider};

use crate::{DatasetError, IoConfig};

/// A place in an object store: an object or a prefix.
#[derive(Debug, Clone)]
pub struct StoreUrl {
    /// The store, with timeouts and retries set.
    pub store: Arc<dyn ObjectStore>,
    /// The path in the store.
    pub path: Path,
    /// The URL for people: without user, password and query.
    pub url: String,
}

/// Opens the store behind `url` (no glob). Nothing is sent yet, but for a local connection attempt to the cloud's
/// metadata service where no credentials are set. The store must be used inside a tokio runtime
/// ([`crate::IoRuntime::block_on`]).
///
/// Failures of the store itself become clear errors by [`classify`].
pub fn open_url(url: &str, io: &IoConfig) -> Result<StoreUrl, DatasetError> {
    let location = Location::parse(url)?;
    let store = build(&location, io, &CountingConnector::default())?;
    Ok(StoreUrl {
        store,
        path: location.store_path()?,
        url: location.display(),
    })
}

/// Builds the store that `location` lies in; all its HTTP requests go through `connector`.
pub(crate) fn build(
    location: &Location,
    io: &IoConfig,
    connector: &CountingConnector,
) -> Result<Arc<dyn ObjectStore>, DatasetError> {
    let retry = retry_config(io);
    let setup = |source: object_store::Error| DatasetError::Setup {
        url: location.display(),
        source: crate::error::StoreCause::new(&source),
    };
    let no_credentials = || DatasetError::NoCredentials {
        url: location.display(),
        provider: location.provider,
    };
    Ok(match location.provider {
        Provider::Local => Arc::new(LocalFileSystem::new()),
        Provider::Aws => {
            let builder = aws::builder(location, &io.store_options)?;
            let builder = client_settings(io)
                .into_iter()
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(object_store::aws::AmazonS3ConfigKey::Client(key), value)
                });
            let builder = builder
                .with_retry(retry)
                .with_http_connector(connector.clone());
            Arc::new(builder.build().map_err(setup)?)
        }
        Provider::Google => {
            if !has_google_credentials(&io.store_options) && !metadata_service_answers() {
                return Err(no_credentials());
            }
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&location.bucket);
            let own = io.store_options.with_prefix("GOOGLE_");
            let builder = own.into_iter().fold(builder, |builder, (name, value)| {
                match name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            let builder = client_settings(io)
                .into_iter()
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(GoogleConfigKey::Client(key), value)
                });
            let builder = builder
                .with_retry(retry)
                .with_http_connector(connector.clone());
            Arc::new(builder.build().map_err(setup)?)
        }
        Provider::Azure => {
            if !has_azure_credentials(&io.store_options) && !metadata_service_answers() {
                return Err(no_credentials());
            }
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(&location.bucket);
            let own = io.store_options.with_prefix("AZURE_");
            let builder = own.into_iter().fold(builder, |builder, (name, value)| {
                match name.to_ascii_lowercase().parse::<AzureConfigKey>() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            let builder = client_settings(io)
                .into_iter()
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(AzureConfigKey::Client(key), value)
                });
            let builder = builder
                .with_retry(retry)
                .with_http_connector(connector.clone());
            Arc::new(builder.build().map_err(setup)?)
        }
        Provider::Http => {
            let options = client_settings(io)
                .into_iter()
                .fold(ClientOptions::new(), |options, (key, value)| {
                    options.with_config(key, value)
                })
                .with_allow_http(true);
            let builder = HttpBuilder::new()
                .with_url(&location.base_url)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(connector.clone());
            Arc::new(builder.build().map_err(setup)?)
        }
    })
}

/// Timeouts and connection reuse, in the form that all builders take on top of their environment variables.
fn client_settings(io: &IoConfig) -> Vec<(ClientConfigKey, String)> {
    let timeout_ms = (io.request_timeout_s * 1000.0).max(1.0) as u64;
    vec![
        (ClientConfigKey::Timeout, format!("{timeout_ms}ms")),
        (
            ClientConfigKey::ConnectTimeout,
            format!("{}ms", timeout_ms.min(5_000)),
        ),
        (
            ClientConfigKey::PoolMaxIdlePerHost,
            io.max_requests.to_string(),
        ),
        (ClientConfigKey::PoolIdleTimeout, "60s".to_owned()),
    ]
}

/// Attempts follow each other at 0.1, 0.2, 0.4, ... seconds, at most 10, jittered.
fn retry_config(io: &IoConfig) -> RetryConfig {
    let attempts = io.max_retries as f64 + 1.0;
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: io.max_retries,
        retry_timeout: Duration::from_secs_f64(attempts * (io.request_timeout_s.max(0.001) + 10.0)),
    }
}

fn has_google_credentials(options: &StoreOptions) -> bool {
    options.any(&[
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "SERVICE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_BEARER_TOKEN",
        "GOOGLE_SKIP_SIGNATURE",
    ]) || home_file(
        options,
        ".config/gcloud/application_default_credentials.json",
    )
    .is_some()
}

fn has_azure_credentials(options: &StoreOptions) -> bool {
    options.any(&[
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "AZURE_SKIP_SIGNATURE",
        "AZURE_STORAGE_USE_EMULATOR",
        "IDENTITY_ENDPOINT",
    ])
}

/// A file in the home folder, if it exists.
fn home_file(options: &StoreOptions, name: &str) -> Option<std::path::PathBuf> {
    let path = std::path::PathBuf::from(options.get("HOME")?).join(name);
    path.is_file().then_some(path)
}

/// Whether this machine has a cloud metadata service, which can lend credentials. Asked only where nothing else is
/// set, and for 300 ms: the cloud's own client would wait for it for 20 seconds.
fn metadata_service_answers() -> bool {
    let address = std::net::SocketAddr::from(([169, 254, 169, 254], 80));
    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
}
