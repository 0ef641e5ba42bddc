//! TLS: who the server is, and whom it lets in.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Certificates of a server. Clients have to show one, too, by the same authority.
#[derive(Debug, Clone)]
pub struct Tls(pub(super) Arc<ServerConfig>);

impl Tls {
    /// Reads `ca-cert.pem`, `server-cert.pem` and `server-key.pem` from a folder, which are the names that
    /// QEMU and nbdkit have for them. Clients are let in with a certificate by that authority only.
    ///
    /// # Errors
    /// One of the files cannot be read, or is not what its name says; the text names it.
    pub fn from_folder(folder: &Path) -> io::Result<Self> {
        let authority = certificates(&folder.join("ca-cert.pem"))?;
        let own = certificates(&folder.join("server-cert.pem"))?;
        let path = folder.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_slice(&read(&path)?).map_err(|e| wrong(&path, e))?;
        let mut roots = RootCertStore::empty();
        for certificate in authority {
            roots.add(certificate).map_err(|e| wrong(&folder.join("ca-cert.pem"), e))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .map_err(|e| wrong(&folder.join("ca-cert.pem"), e))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(clients)
            .with_single_cert(own, key)
            .map_err(|e| wrong(&folder.join("server-cert.pem"), e))?;
        Ok(Self(config.into()))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all.map_err(|e| wrong(path, e))? {
        none if none.is_empty() => Err(wrong(path, "it has no certificate")),
        all => Ok(all),
    }
}
