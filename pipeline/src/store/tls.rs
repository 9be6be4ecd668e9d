//! Certificates that are trusted beside the system's.
use std::path::PathBuf;

use object_store::Certificate;

use super::StoreOptions;
use crate::store::StoreCause;

/// A file that is named and cannot be used.
#[derive(Debug)]
pub(super) struct BadFile {
    pub variable: &'static str,
    pub file: PathBuf,
    pub source: StoreCause,
}

/// The certificates of the files that the settings name.
pub(super) fn certificates(options: &StoreOptions) -> Result<Vec<Certificate>, BadFile> {
    let mut certificates = Vec::new();
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let Some(file) = options.get(variable).map(PathBuf::from) else {
            continue;
        };
        let bad = |error: &(dyn std::error::Error + 'static)| BadFile {
            variable,
            file: file.clone(),
            source: StoreCause::new(error),
        };
        let text = std::fs::read(&file).map_err(|error| bad(&error))?;
        let found = Certificate::from_pem_bundle(&text).map_err(|error| bad(&error))?;
        if found.is_empty() {
            let error =
                std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no certificate");
            return Err(bad(&error));
        }
        certificates.extend(found);
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = std::env::temp_dir().join(format!("nepa-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let empty = folder.join("empty.pem");
        std::fs::write(&empty, "no certificate\n").unwrap();
        for (variable, file) in [
            ("AWS_CA_BUNDLE", folder.join("absent.pem")),
            ("SSL_CERT_FILE", empty),
        ] {
            let other = if variable == "AWS_CA_BUNDLE" {
                "SSL_CERT_FILE"
            } else {
                "AWS_CA_BUNDLE"
            };
            let options = StoreOptions::new([(variable, file.to_str().unwrap()), (other, "")]);
            let bad = certificates(&options).unwrap_err();
            assert_eq!((bad.variable, bad.file), (variable, file));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
