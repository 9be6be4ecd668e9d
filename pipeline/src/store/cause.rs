//! From a store's error to ours: what kind of failure it is, with no secret in its text.
use std::error::Error;

use object_store::client::{HttpError, HttpErrorKind};

use super::Location;
use crate::error::{DatasetError, Place, StoreCause};

/// What `error`, met at `place`, means for the user.
///
/// `attempts` is how often the request was tried.
pub fn classify(
    error: &(dyn Error + 'static),
    location: &Location,
    place: Place,
    attempts: usize,
) -> DatasetError {
    let source = StoreCause::new(error);
    let text = source.to_string();
    let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
    let url = place.object.clone();
    // The store wraps some errors of repeated requests once more: look at the whole chain.
    let mut link = Some(error);
    while let Some(current) = link {
        match current.downcast_ref::<object_store::Error>() {
            Some(object_store::Error::NotFound { .. })
                if has(&["NoSuchBucket", "ContainerNotFound"]) =>
            {
                return DatasetError::NoBucket { url, source };
            }
            Some(object_store::Error::NotFound { .. }) => {
                return DatasetError::NotFound { url, source };
            }
            Some(object_store::Error::Precondition { .. }) => {
                return DatasetError::Replaced {
                    place,
                    expected: "its first ETag".to_owned(),
                };
            }
            Some(
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. },
            ) => return DatasetError::Denied { place, source },
            _ => {}
        }
        if let Some(http) = current.downcast_ref::<HttpError>()
            && http.kind() == HttpErrorKind::Connect
        {
            let endpoint = endpoint_in(&text).unwrap_or_else(|| location.display_key(""));
            let variable = location.provider.endpoint_variable();
            return DatasetError::Unreachable {
                url,
                endpoint,
                variable,
                source,
            };
        }
        link = current.source();
    }
    // Errors of listings come without a kind, only with their text.
    if has(&["NoSuchBucket", "ContainerNotFound"]) {
        return DatasetError::NoBucket { url, source };
    }
    if has(&["403 Forbidden", "401 Unauthorized"]) {
        return DatasetError::Denied { place, source };
    }
    if has(&[
        "redirect without LOCATION",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
    ]) {
        let region = std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION"));
        return DatasetError::WrongRegion {
            url,
            region: region.unwrap_or_else(|_| "us-east-1".to_owned()),
            source,
        };
    }
    if has(&[
        "non-partial response",
        "Content-Range",
        "CONTENT_RANGE",
        "UnexpectedRange",
    ]) || (text.contains("Requested ") && text.contains(", got "))
    {
        return DatasetError::WrongRange { place, source };
    }
    // A range beyond the end: the object has become shorter since its size was read.
    if has(&["416 Range Not Satisfiable"]) {
        return DatasetError::Replaced {
            place,
            expected: "a longer object".to_owned(),
        };
    }
    DatasetError::Request {
        place,
        attempts,
        source,
    }
}

/// An error's text and that of its sources, each said once.
pub fn full_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// `text` with user names, passwords and query strings cut from every URL in it.
pub fn redact(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find("://") {
        let start = position + 3;
        result.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | ')'))
            .unwrap_or(rest.len());
        let url = &rest[..end];
        let authority_end = url.find('/').unwrap_or(url.len());
        let from = url[..authority_end].rfind('@').map_or(0, |at| at + 1);
        let to = url.find('?').unwrap_or(url.len()).max(from);
        result.push_str(&url[from..to]);
        rest = &rest[end..];
    }
    result.push_str(rest);
    result
}

/// Scheme, host and port of the first web URL in `text`.
fn endpoint_in(text: &str) -> Option<String> {
    let start = text.find("http://").or_else(|| text.find("https://"))?;
    let url = &text[start..];
    let host = url.find("://")? + 3;
    let end = url[host..]
        .find(|c: char| c == '/' || c.is_whitespace())
        .map_or(url.len(), |end| host + end);
    Some(url[..end].to_owned())
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
        assert_eq!(
            endpoint_in("x http://127.0.0.1:9/b/k y").as_deref(),
            Some("http://127.0.0.1:9")
        );
    }
}
