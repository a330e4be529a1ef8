use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::{BootstrapError, file};

/// The SPIFFE trust domain of development fleets and tests.
pub const TRUST_DOMAIN: &str = "garrison.local";

/// A development certificate authority in a folder. Never for production: its key lies beside it.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    trust_domain: String,
}

/// Where an identity's PEM files are.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// Certificate chain.
    pub cert_file: PathBuf,
    /// Private key, PKCS#8, mode 0600.
    pub key_file: PathBuf,
    /// The authority that all identities share.
    pub ca_file: PathBuf,
}

impl Pki {
    /// Opens the authority in `dir`, making it when there is none.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open_or_create(dir: &Path, trust_domain: &str) -> Result<Self, BootstrapError> {
        let pki = Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.to_owned(),
        };
        file::make_folder(dir)?;
        if !pki.ca_key_file().exists() {
            let key = generate();
            let certificate = pki.ca_params().self_signed(&key).expect("our parameters are valid");
            file::write_secret(&pki.ca_key_file(), &key.serialize_pem())?;
            file::write(&pki.ca_file(), &certificate.pem())?;
        }
        Ok(pki)
    }

    /// The authority's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The SPIFFE trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The files of an identity such as `svc/anomaly` or `enforcer/router`, issued on first use. The
    /// certificate carries the SPIFFE id, the last path segment and `localhost` as DNS names, and the
    /// loopback addresses.
    ///
    /// # Errors
    /// When the folder cannot be written or the authority's key cannot be read.
    pub fn identity(&self, name: &str) -> Result<IdentityFiles, BootstrapError> {
        let stem = name.replace('/', "-");
        let files = IdentityFiles {
            cert_file: self.dir.join(format!("{stem}.pem")),
            key_file: self.dir.join(format!("{stem}.key")),
            ca_file: self.ca_file(),
        };
        if files.cert_file.exists() && files.key_file.exists() {
            return Ok(files);
        }
        let ca_key_file = self.ca_key_file();
        let ca_key = file::read(&ca_key_file)?;
        let ca_key = KeyPair::from_pem(&ca_key)
            .map_err(|error| BootstrapError::new(&ca_key_file, std::io::Error::other(error.to_string())))?;
        let ca_params = self.ca_params();
        let issuer = Issuer::from_params(&ca_params, &ca_key);

        let key = generate();
        let certificate = self
            .leaf_params(name)
            .signed_by(&key, &issuer)
            .expect("our parameters are valid");
        // The key last: its presence says that the pair is whole.
        file::write(&files.cert_file, &certificate.pem())?;
        file::write_secret(&files.key_file, &key.serialize_pem())?;
        Ok(files)
    }

    fn ca_key_file(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    fn ca_params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Garrison development CA ({})", self.trust_domain));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn leaf_params(&self, name: &str) -> CertificateParams {
        let last = name.rsplit('/').next().unwrap_or(name);
        let text = |value: &str| value.to_owned().try_into().expect("identity names are ASCII");
        let mut params = CertificateParams::default();
        params.distinguished_name = named(last);
        params.subject_alt_names = vec![
            SanType::URI(text(&format!("spiffe://{}/{name}", self.trust_domain))),
            SanType::DnsName(text("localhost")),
            SanType::DnsName(text(last)),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params
    }
}

fn generate() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
