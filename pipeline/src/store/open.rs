//! Opening a store: its address, its credentials, its client, its patience.
use std::sync::Arc;
use std::time::Duration;

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig, path::Path};

use super::connector::StoreConnector;
use super::endpoint::{allow_http, metadata_service_answers, own_endpoint, trimmed};
use super::patient_store::PatientStore;
use super::{
    CountingConnector, InParts, IoConfig, Location, Patience, Provider, StoreCause, StoreError,
    StoreOptions, aws, seconds, secrets,
};

/// A place in an object store: an object or a prefix.
#[derive(Debug, Clone)]
pub struct StoreUrl {
    /// The store. Its operations are repeated while its [`Patience`] lasts.
    pub store: Arc<dyn ObjectStore>,
    /// The path in the store.
    pub path: Path,
    /// The URL for people: without user, password and query.
    pub url: String,
    /// What to call the place in [`crate::classify`].
    pub location: Location,
    /// How long the store is waited for.
    pub patience: Patience,
    /// The store without repetitions, for whoever decides on these itself.
    pub single: Arc<dyn ObjectStore>,
    /// The same, for uploads in parts, if it takes such.
    pub parts: Option<Arc<dyn InParts>>,
}

/// Opens the store behind `url` (no glob). Nothing is sent yet, but for a local connection attempt
/// to the cloud's metadata service where no credentials are set. The store must be used inside a
/// tokio runtime ([`crate::IoRuntime::block_on`]).
///
/// Failures of the store itself become clear errors by [`crate::classify`].
pub fn open_url(url: &str, io: &IoConfig) -> Result<StoreUrl, StoreError> {
    let location = Location::parse(url)?;
    let stores = build(&location, io, &CountingConnector::default())?;
    Ok(StoreUrl {
        store: stores.patient,
        path: location.store_path()?,
        url: location.display(),
        location,
        patience: stores.patience,
        single: stores.single,
        parts: stores.parts,
    })
}

/// One store, for two ways of using it.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    /// Repeats what fails, with its patience.
    pub patient: Arc<dyn ObjectStore>,
    /// Does not, for whoever does so in another way with the same patience.
    pub single: Arc<dyn ObjectStore>,
    /// The same, for uploads in parts, if it takes such.
    pub parts: Option<Arc<dyn InParts>>,
    /// How long it is waited for.
    pub patience: Patience,
}

impl Stores {
    fn new(
        location: &Location,
        io: &IoConfig,
        single: Arc<dyn ObjectStore>,
        parts: Option<Arc<dyn InParts>>,
    ) -> Self {
        let endpoint = io.store_options.get(location.provider.endpoint_variable());
        let patience = Patience::shared(
            &location.store_name(),
            &endpoint.unwrap_or_default(),
            seconds(io.outage_s),
        );
        let patient: Arc<dyn ObjectStore> = match location.provider {
            // Whatever waits for files of a machine that is away does so in the kernel.
            Provider::Local => Arc::clone(&single),
            _ => Arc::new(PatientStore::new(
                Arc::clone(&single),
                parts.clone(),
                patience.clone(),
                seconds(io.request_timeout_s),
            )),
        };
        Self {
            patient,
            single,
            parts,
            patience,
        }
    }
}

/// Builds the store that `location` lies in; all its HTTP requests go through `connector`.
pub(crate) fn build(
    location: &Location,
    io: &IoConfig,
    connector: &CountingConnector,
) -> Result<Stores, StoreError> {
    // What fails is repeated above, where the clock decides and credentials are asked for anew.
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let options = &io.store_options;
    secrets::remember_settings(options);
    let silent = connector.with_silence(seconds(io.request_timeout_s));
    let mut connector = StoreConnector::new(location, options, &silent)?;
    let setup = |source: object_store::Error| StoreError::Setup {
        url: location.display(),
        source: StoreCause::new(&source),
    };
    let no_credentials = || StoreError::NoCredentials {
        url: location.display(),
        provider: location.provider,
    };
    let (single, parts): (Arc<dyn ObjectStore>, Option<Arc<dyn InParts>>) = match location.provider
    {
        Provider::Local => (Arc::new(LocalFileSystem::new()), None),
        Provider::Aws => {
            let (builder, lender) = aws::builder(location, options)?;
            connector.lender = lender;
            let builder = client_settings(io)
                .into_iter()
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(object_store::aws::AmazonS3ConfigKey::Client(key), value)
                });
            let builder = builder.with_retry(retry).with_http_connector(connector);
            in_parts(builder.build().map_err(setup)?)
        }
        Provider::Google => {
            if !has_google_credentials(options) && !metadata_service_answers() {
                return Err(no_credentials());
            }
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&location.bucket);
            let own = options.with_prefix("GOOGLE_");
            let builder = own.into_iter().fold(builder, |builder, (name, value)| {
                match name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            let endpoint = own_endpoint(&["GOOGLE_BASE_URL"], location, options)?;
            let client = client_settings(io)
                .into_iter()
                .chain(allow_http(endpoint.as_ref()));
            let client = client.map(|(key, value)| (GoogleConfigKey::Client(key), value));
            let address = endpoint.map(|url| (GoogleConfigKey::BaseUrl, trimmed(&url)));
            let builder = address
                .into_iter()
                .chain(client)
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(key, value)
                });
            let builder = builder.with_retry(retry).with_http_connector(connector);
            in_parts(builder.build().map_err(setup)?)
        }
        Provider::Azure => {
            if !has_azure_credentials(options) && !metadata_service_answers() {
                return Err(no_credentials());
            }
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(&location.bucket);
            let own = options.with_prefix("AZURE_");
            let builder = own.into_iter().fold(builder, |builder, (name, value)| {
                match name.to_ascii_lowercase().parse::<AzureConfigKey>() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                }
            });
            let endpoint = own_endpoint(
                &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"],
                location,
                options,
            )?;
            let client = client_settings(io)
                .into_iter()
                .chain(allow_http(endpoint.as_ref()));
            let client = client.map(|(key, value)| (AzureConfigKey::Client(key), value));
            let address = endpoint.map(|url| (AzureConfigKey::Endpoint, trimmed(&url)));
            let builder = address
                .into_iter()
                .chain(client)
                .fold(builder, |builder, (key, value)| {
                    builder.with_config(key, value)
                });
            let builder = builder.with_retry(retry).with_http_connector(connector);
            in_parts(builder.build().map_err(setup)?)
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
                .with_http_connector(connector);
            (Arc::new(builder.build().map_err(setup)?), None)
        }
    };
    Ok(Stores::new(location, io, single, parts))
}

/// A store that takes uploads in parts, as both that it is.
fn in_parts<S: ObjectStore + MultipartStore>(
    store: S,
) -> (Arc<dyn ObjectStore>, Option<Arc<dyn InParts>>) {
    let store = Arc::new(store);
    (Arc::clone(&store) as _, Some(store))
}

/// Timeouts and connection reuse, in the form that all builders take on top of their environment
/// variables.
fn client_settings(io: &IoConfig) -> Vec<(ClientConfigKey, String)> {
    let connect = seconds(io.request_timeout_s).min(Duration::from_secs(5));
    // Idle connections are not limited in number. The client opens one wherever none is idle at
    // that moment; where it may not keep them, it opens and closes thousands while footers are
    // read.
    vec![
        // A large answer may take its time, as long as something comes: see `http_client`.
        (ClientConfigKey::Timeout, "365days".to_owned()),
        (
            ClientConfigKey::ConnectTimeout,
            format!("{}ms", connect.as_millis().max(1)),
        ),
        (ClientConfigKey::PoolIdleTimeout, "60s".to_owned()),
    ]
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
