//! Certificate authorities and certificates, good and bad.

use std::path::{Path, PathBuf};

use garrison_auth::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

pub(crate) const DOMAIN: &str = "test.garrison";

pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) folder: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { params, key, folder }
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Files of an identity of the fleet, such as `svc/anomaly`.
    pub(crate) fn identity(&self, name: &str) -> TlsFiles {
        self.certificate(&name.replace('/', "-"), &[&format!("spiffe://{DOMAIN}/{name}")], |_| {})
    }

    /// Files of a certificate with these URIs, changed as one likes.
    pub(crate) fn certificate(
        &self,
        file: &str,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let uris = uris
            .iter()
            .map(|uri| SanType::URI((*uri).to_owned().try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let files = self.files(file);
        std::fs::write(&files.cert_file, certificate.pem()).unwrap();
        std::fs::write(&files.key_file, key.serialize_pem()).unwrap();
        files
    }

    pub(crate) fn files(&self, file: &str) -> TlsFiles {
        let path = |end: &str| -> PathBuf { Path::new(self.folder.path()).join(format!("{file}.{end}")) };
        TlsFiles {
            cert_file: path("pem"),
            key_file: path("key"),
            ca_file: self.ca_file(),
        }
    }
}
