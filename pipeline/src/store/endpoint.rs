//! The address of a store, as people write it.
use std::time::Duration;

use std::net::IpAddr;

use ::url::{Host, Url};

use object_store::ClientConfigKey;

use super::{Location, StoreOptions, redact};
use crate::StoreError;

/// The endpoint that `variable` is set to, with a scheme.
pub(super) fn parse(
    value: &str,
    variable: &'static str,
    location: &Location,
) -> Result<Url, StoreError> {
    let bad = |problem| StoreError::Endpoint {
        url: location.display(),
        variable,
        value: redact(&with_scheme(value)),
        problem,
    };
    let url = Url::parse(&with_scheme(value))
        .map_err(|_| bad("it is no address; write it as https://host:port"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("its scheme is neither http:// nor https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it names no host; write it as https://host:port"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(
            "credentials do not belong into it; set the cloud's own variables for them",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it must end before `?` and `#`"));
    }
    Ok(url)
}

/// `value`, which may lack its scheme: then it is `http://` for this machine, an address of a
/// private network and a name without a dot, for which nobody signs certificates, and `https://`
/// for all others.
pub(super) fn with_scheme(value: &str) -> String {
    let value = value.trim();
    if value.contains("://") {
        return value.to_owned();
    }
    let plain = Url::parse(&format!("http://{value}")).is_ok_and(|url| match url.host() {
        Some(Host::Ipv4(address)) => is_private(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_private(IpAddr::V6(address)),
        Some(Host::Domain(name)) => !name.contains('.') || name.ends_with(".localhost"),
        None => false,
    });
    format!("{}://{value}", if plain { "http" } else { "https" })
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_private() || address.is_link_local()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// The endpoint for requests that name the bucket in the host, which people give with the bucket or
/// without.
pub(super) fn with_bucket(mut endpoint: Url, location: &Location) -> Result<Url, StoreError> {
    let bucket = &location.bucket;
    let host = match endpoint.host() {
        Some(Host::Domain(host)) if host.starts_with(&format!("{bucket}.")) => return Ok(endpoint),
        Some(Host::Domain(host)) => Some(format!("{bucket}.{host}")),
        _ => None,
    };
    if host.is_some() && endpoint.set_host(host.as_deref()).is_ok() {
        return Ok(endpoint);
    }
    Err(StoreError::Endpoint {
        url: location.display(),
        variable: "AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true with AWS_ENDPOINT_URL",
        value: endpoint.to_string(),
        problem: "the bucket's name and this host make no host name together; unset AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    })
}

/// The endpoint that the first of `variables` which is set names.
pub(super) fn own_endpoint(
    variables: &[&'static str],
    location: &Location,
    options: &StoreOptions,
) -> Result<Option<::url::Url>, StoreError> {
    let set = |&variable: &&'static str| Some((variable, options.get(variable)?));
    let named = variables.iter().find_map(set);
    named
        .map(|(variable, value)| parse(&value, variable, location))
        .transpose()
}

/// Whoever sets an `http://` endpoint has allowed http.
pub(super) fn allow_http(endpoint: Option<&::url::Url>) -> Option<(ClientConfigKey, String)> {
    let plain = endpoint.is_some_and(|url| url.scheme() == "http");
    plain.then(|| (ClientConfigKey::AllowHttp, "true".to_owned()))
}

/// An endpoint as the stores take it.
pub(super) fn trimmed(endpoint: &::url::Url) -> String {
    endpoint.as_str().trim_end_matches('/').to_owned()
}

/// Whether this machine has a cloud metadata service, which can lend credentials. Asked only where
/// nothing else is set, and for 300 ms: the cloud's own client would wait for it for 20 seconds.
pub(super) fn metadata_service_answers() -> bool {
    let address = std::net::SocketAddr::from(([169, 254, 169, 254], 80));
    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location() -> Location {
        Location::parse("s3://bucket/a").unwrap()
    }

    #[test]
    fn a_scheme_may_be_left_out() {
        for (value, url) in [
            ("127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("localhost:9000", "http://localhost:9000/"),
            ("[::1]:9000", "http://[::1]:9000/"),
            ("10.1.2.3", "http://10.1.2.3/"),
            ("minio:9000/s3", "http://minio:9000/s3"),
            (" 8.8.8.8:443 ", "https://8.8.8.8/"),
            ("s3.example.com:9000", "https://s3.example.com:9000/"),
            ("http://s3.example.com", "http://s3.example.com/"),
        ] {
            assert_eq!(parse(value, "V", &location()).unwrap().as_str(), url);
        }
    }

    #[test]
    fn nonsense_is_said_and_secrets_are_not() {
        for value in [
            "",
            "://",
            "http://",
            "http:// a",
            "::::",
            "ftp://host",
            "host name",
            "https://h:99999",
            "http://h/#c",
            "https://user:hunter2@host",
            "user:hunter2@host:9000",
            "https://h?sig=hunter2",
            "h:port",
            "\u{0}",
        ] {
            let error = parse(value, "AWS_ENDPOINT_URL", &location())
                .expect_err(value)
                .to_string();
            assert!(
                error.contains("AWS_ENDPOINT_URL") && !error.contains("hunter2"),
                "{value}: {error}"
            );
        }
    }

    #[test]
    fn the_bucket_in_the_host() {
        let with = |value| {
            let endpoint = parse(value, "V", &location()).unwrap();
            with_bucket(endpoint, &location()).map(|url| url.to_string())
        };
        assert_eq!(
            with("https://s3.example.com:1/p").unwrap(),
            "https://bucket.s3.example.com:1/p"
        );
        assert_eq!(
            with("https://bucket.s3.example.com").unwrap(),
            "https://bucket.s3.example.com/"
        );
        assert!(
            with("127.0.0.1:9000")
                .unwrap_err()
                .to_string()
                .contains("VIRTUAL_HOSTED")
        );
    }
}
