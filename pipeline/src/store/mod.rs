//! URLs to object stores: local paths, `file://`, `s3://`, `gs://`, `az://`, `http(s)://`.
//!
//! [`open_url`] serves whoever reads or writes one object or prefix (shards, checkpoints); [`list`]
//! turns globs and prefixes into sorted objects for a data set. Credentials, region and endpoint
//! come from the environment variables of each cloud; nothing secret ever reaches a message.

mod aws;
mod cache;
mod cause;
mod config;
mod connector;
mod counters;
mod delta;
mod endpoint;
mod error;
mod http_client;
mod io;
mod latencies;
pub(crate) mod list;
mod listing;
pub(crate) mod names;
mod odd_keys;
mod open;
mod options;
mod patience;
mod patient_store;
pub(crate) mod places;
mod provider;
mod reason;
mod request;
mod runtime;
mod secrets;
mod tables;
mod tls;
mod url;
mod walk;

pub use aws::CredentialError;
pub(crate) use cache::Cache;
pub(crate) use cause::{Silence, is_throttle};
pub use cause::{classify, full_text, plain};
pub use config::IoConfig;
pub(crate) use config::seconds;
pub(crate) use counters::HeldBytes;
pub use counters::IoCounters;
pub use delta::DeltaProblem;
pub(crate) use error::UnexpectedRange;
pub use error::{Action, Denial, Found, StoreError};
pub(crate) use http_client::CountingConnector;
pub(crate) use io::Io;
pub use latencies::Latencies;
pub use names::is_parquet;
pub use odd_keys::OddKeys;
pub use open::{StoreUrl, open_url};
pub(crate) use open::{Stores, build};
pub use options::StoreOptions;
pub use patience::Patience;
pub use patient_store::InParts;
pub use provider::Provider;
pub use reason::StoreCause;
pub(crate) use request::{Object, Requests};
pub use runtime::IoRuntime;
pub use secrets::redact;
pub use tables::{TableFormat, TableProblem};
pub use url::{Location, shown_url, storable_url};
