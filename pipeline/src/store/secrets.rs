//! What is secret, and how it is kept out of texts: of messages, logs, and of what is stored.
//!
//! Two nets: [`redact`] cuts what has the form of a secret (user names and passwords in URLs, their
//! queries, signed parameters), and masks the values that were met as secrets so far, whatever
//! stands around them.
use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use super::StoreOptions;

/// What stands for a secret in a text.
const MASK: &str = "***";
/// Shorter values are not masked wherever they stand: they could be parts of ordinary words.
const LEAST_LENGTH: usize = 7;
/// Beyond so many values, texts would take long to look through; what has the form of a secret is
/// cut anyway.
const MOST_KNOWN: usize = 1024;

/// Secret values met so far.
static KNOWN: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());

/// From now on `secret` is masked by [`redact`].
pub(super) fn remember(secret: &str) {
    let secret = secret.trim();
    let known = |values: &BTreeSet<String>| {
        secret.len() < LEAST_LENGTH || values.len() >= MOST_KNOWN || values.contains(secret)
    };
    if known(&KNOWN.read().unwrap_or_else(PoisonError::into_inner)) {
        return;
    }
    let mut values = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    values.insert(secret.to_owned());
}

/// Remembers the secrets among the clouds' settings and the proxies'.
pub(super) fn remember_settings(options: &StoreOptions) {
    for (name, value) in options.with_prefix("") {
        let name = name.to_ascii_uppercase();
        let of_a_cloud = ["AWS_", "AZURE_", "GOOGLE_", "SERVICE_ACCOUNT"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        let names_a_place = [
            "_FILE",
            "_PATH",
            "_URI",
            "_ID",
            "_NAME",
            "_ENDPOINT",
            "_URL",
        ]
        .iter()
        .any(|ending| name.ends_with(ending));
        let secret = [
            "KEY",
            "SECRET",
            "TOKEN",
            "PASSWORD",
            "SAS",
            "CONNECTION_STRING",
        ]
        .iter()
        .any(|word| name.contains(word));
        if of_a_cloud && secret && !names_a_place {
            remember(&value);
            remember_parts(&value);
        }
        if name.ends_with("PROXY") || (of_a_cloud && value.contains("://")) {
            remember_user_info(&value);
        }
    }
}

/// The secrets inside a SAS token (its signature) or the JSON of a service account (its keys).
fn remember_parts(value: &str) {
    for (name, value) in ::url::form_urlencoded::parse(value.trim_start_matches('?').as_bytes()) {
        if name == "sig" {
            remember(&value);
        }
    }
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(value) {
        for name in [
            "private_key",
            "private_key_id",
            "client_secret",
            "refresh_token",
        ] {
            let text = fields.get(name).and_then(serde_json::Value::as_str);
            text.unwrap_or_default().lines().for_each(remember);
        }
    }
}

/// User name and password of a URL, also where it names no scheme, as proxies may.
fn remember_user_info(url: &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    if let Some((user_info, _)) = authority.rsplit_once('@') {
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        for text in [user_info, user, password] {
            remember(text);
        }
        remember(&basic_auth(user, password));
    }
}

/// The `Authorization` header of a user name and password as they stand in a URL.
pub(super) fn basic_auth(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let pair = [&decoded(user)[..], b":", &decoded(password)].concat();
    base64::prelude::BASE64_STANDARD.encode(pair)
}

/// What a parameter of a web URL's query is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    /// It signs or opens: never shown, and not part of what the object is, as it changes when the
    /// URL is signed again.
    Secret,
    /// It says which object, and is shown.
    Shown,
    /// Nobody knows. Part of what the object is, as a digest.
    Unknown,
}

/// By the name alone.
pub(super) fn parameter(name: &str) -> Parameter {
    const EXACT: &[&str] = &[
        // Shared access signatures of Azure.
        "sig",
        "se",
        "sp",
        "sv",
        "sr",
        "st",
        "spr",
        "sip",
        "si",
        "ss",
        "srt",
        "ses",
        "sdd",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "saoid",
        "suoid",
        "scid",
        "rscc",
        "rscd",
        "rsce",
        "rscl",
        "rsct",
        // Signed URLs of older and other kinds.
        "expires",
        "expiry",
        "exp",
        "policy",
        "hdnts",
        "hdnea",
        "hmac",
        "key",
        "pw",
        "pwd",
        "pass",
        "code",
        "jwt",
        "sid",
        "ticket",
        "nonce",
        "user",
        "username",
        "googleaccessid",
    ];
    const PREFIXES: &[&str] = &[
        "x-amz-",
        "x-goog-",
        "x-oss-",
        "x-cos-",
        "x-ms-",
        "x-xet-",
        "q-",
        "response-",
    ];
    const PARTS: &[&str] = &[
        "sign",
        "token",
        "secret",
        "passw",
        "apikey",
        "api_key",
        "api-key",
        "accesskey",
        "access_key",
        "access-key",
        "auth",
        "credential",
        "session",
        "key-pair",
    ];
    const SHOWN: &[&str] = &[
        "versionid",
        "version",
        "v",
        "partnumber",
        "generation",
        "snapshot",
        "revision",
        "rev",
        "ref",
        "shard",
        "part",
        "index",
        "split",
        "config",
        "dataset",
        "offset",
        "page",
        "start",
        "end",
        "row",
        "file",
        "filename",
        "name",
        "path",
        "format",
        "download",
        "alt",
        "raw",
    ];
    let name = name.to_ascii_lowercase();
    if SHOWN.contains(&name.as_str()) {
        Parameter::Shown
    } else if EXACT.contains(&name.as_str())
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || PARTS.iter().any(|part| name.contains(part))
    {
        Parameter::Secret
    } else {
        Parameter::Unknown
    }
}

/// `text` without secrets: user names, passwords and query strings are cut from every URL in it,
/// signed parameters wherever they stand, and every secret value that was met is masked.
pub fn redact(text: &str) -> String {
    let mut text = cut_parameters(&cut_urls(text));
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    // The longest first: one may be a part of another.
    let mut found: Vec<&String> = known
        .iter()
        .filter(|secret| text.contains(*secret))
        .collect();
    found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in found {
        text = text.replace(secret.as_str(), MASK);
    }
    text
}

/// Whether a URL or a value in a query ends here.
fn ends(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>' | ')')
}

/// Whether a parameter of a query says which object, or stands for what was removed.
fn may_be_shown(pair: &str) -> bool {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let shown = !value.is_empty() && parameter(name) == Parameter::Shown;
    shown || was_removed(name, value)
}

fn cut_urls(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find("://") {
        let start = position + 3;
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let url = &rest[..rest.find(ends).unwrap_or(rest.len())];
        // A password may hold a `?` where it should be escaped.
        let authority_end = url.find('/').unwrap_or(url.len());
        let from = url[..authority_end].rfind('@').map_or(0, |at| at + 1);
        let to = url.find('?').unwrap_or(url.len()).max(from);
        result.push_str(&url[from..to]);
        let query = url.get(to + 1..).unwrap_or_default();
        let mut mark = '?';
        for pair in query.split('&').filter(|pair| may_be_shown(pair)) {
            result.push(mark);
            result.push_str(pair);
            mark = '&';
        }
        rest = &rest[url.len()..];
    }
    result.push_str(rest);
    result
}

/// Cuts the values of signed parameters, `?name=value` or `&name=value`, from text that is no whole
/// URL.
fn cut_parameters(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find(['?', '&']) {
        let start = position + 1;
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c| ends(c) || c == '&').unwrap_or(rest.len());
        if let Some((name, value)) = rest[..end].split_once('=')
            && parameter(name) == Parameter::Secret
            && !value.is_empty()
            && !was_removed(name, value)
        {
            result.push_str(name);
            result.push('=');
            result.push_str(MASK);
            rest = &rest[end..];
        }
    }
    result.push_str(rest);
    result
}

/// Begins the digest of a value that is not shown.
pub(super) const DIGEST_MARK: char = '~';
pub(super) const DIGEST_LENGTH: usize = 12;
/// `credentials=REMOVED` in a stored URL's query.
pub(super) const REMOVED_NAME: &str = "credentials";
pub(super) const REMOVED: &str = "REMOVED";

/// Whether a parameter of a query stands for one that was secret.
pub(super) fn was_removed(name: &str, value: &str) -> bool {
    let text = if value.is_empty() { name } else { value };
    // As a query is written, the mark is escaped.
    let digest = text
        .strip_prefix(DIGEST_MARK)
        .or_else(|| text.strip_prefix("%7E"));
    (name == REMOVED_NAME && value == REMOVED)
        || digest.is_some_and(|digest| {
            digest.len() == DIGEST_LENGTH && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_cut_from_urls_in_a_text() {
        assert_eq!(
            redact(
                "GET https://me:pw@host/a?sig=1&x=2 failed (http://b/?q): see s3://k:s@bucket/key"
            ),
            "GET https://host/a failed (http://b/): see s3://bucket/key"
        );
        assert_eq!(redact("no URL here? none"), "no URL here? none");
        // What was shown or stored already stays as it is.
        for url in [
            "http://h/a?shard=1&credentials=REMOVED",
            "http://h/a?n=%7E0123456789ab",
        ] {
            assert_eq!(redact(url), url);
        }
        assert_eq!(redact("http://u:p?w@h/a"), "http://");
        assert_eq!(
            redact("GET /a?versionId=3&X-Amz-Signature=abc&sig=d%2Fe HTTP/1.1"),
            "GET /a?versionId=3&X-Amz-Signature=***&sig=*** HTTP/1.1"
        );
    }

    #[test]
    fn what_was_met_as_a_secret_is_masked_everywhere() {
        let options = StoreOptions::new([
            ("AWS_SESSION_TOKEN", "FwoG-session-of-this-test"),
            ("AWS_PROFILE", "profile-of-this-test"),
            ("https_proxy", "proxy-user-1:proxy-password-1@proxy:3128"),
            ("AZURE_STORAGE_SAS_TOKEN", "?sv=2026&sig=c2lnbmF0dXJl%2Fabc"),
            (
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                r#"{"private_key": "-----BEGIN-----\nMIIEvQIBADANBgkqtest\n"}"#,
            ),
        ]);
        remember_settings(&options);
        assert_eq!(
            redact(
                "a=FwoG-session-of-this-test, proxy-password-1; c2lnbmF0dXJl/abc MIIEvQIBADANBgkqtest"
            ),
            "a=***, ***; *** ***"
        );
        let basic = basic_auth("proxy-user-1", "proxy-password-1");
        assert_eq!(redact(&format!("Basic {basic}")), "Basic ***");
        assert_eq!(redact("profile-of-this-test"), "profile-of-this-test");
    }

    #[test]
    fn parameters_by_name() {
        for name in [
            "X-Amz-Credential",
            "Signature",
            "AWSAccessKeyId",
            "sig",
            "access_token",
            "Expires",
            "OSSAccessKeyId",
        ] {
            assert_eq!(parameter(name), Parameter::Secret, "{name}");
        }
        assert_eq!(parameter("versionId"), Parameter::Shown);
        assert_eq!(parameter("n"), Parameter::Unknown);
    }
}
