//! The other end on the stock `quinn` crate: speaks the wire protocol, but trusts everybody and lies where it is told to.

use std::{net::SocketAddr, net::UdpSocket, sync::Arc};

use identun::{
    spiffe::SpiffeId,
    wire::capsule::{Capsule, CapsuleReader, Hello, PeerFlags},
};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::CertifiedKey,
};

/// A certificate chain and its key, from the files that `identun ca issue` writes.
pub(crate) struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Reads both texts.
    pub(crate) fn from_pem(certificate: &[u8], key: &[u8]) -> Self {
        Self {
            chain: CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<_, _>>()
                .unwrap(),
            key: PrivateKeyDer::from_pem_slice(key).unwrap(),
        }
    }
}

/// An endpoint that presents `credentials` whatever name the client wants, and accepts every client.
pub(crate) fn server(socket: UdpSocket, credentials: &Credentials) -> Endpoint {
    let provider = provider();
    let certified = CertifiedKey::from_der(
        credentials.chain.clone(),
        credentials.key.clone_key(),
        &provider,
    )
    .unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(TrustsEverybody(provider)))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    tls.alpn_protocols = vec![b"identun/1".to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    Endpoint::new(
        EndpointConfig::default(),
        Some(config),
        socket,
        Arc::new(TokioRuntime),
    )
    .unwrap()
}

/// Dials `to` under `name` without asking who answers. `None` presents no certificate at all.
pub(crate) async fn dial(
    socket: UdpSocket,
    to: SocketAddr,
    name: &str,
    credentials: Option<&Credentials>,
) -> Result<Connection, quinn::ConnectionError> {
    let tls = client_tls(provider(), credentials);
    let mut endpoint = Endpoint::new(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )
    .unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).unwrap(),
    )));
    endpoint.connect(to, name).unwrap().await
}

/// TLS of a client that asks nobody who he is.
pub(crate) fn client_tls(
    provider: Arc<CryptoProvider>,
    credentials: Option<&Credentials>,
) -> rustls::ClientConfig {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsEverybody(provider)));
    let mut tls = match credentials {
        Some(own) => tls
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
            .unwrap(),
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"identun/1".to_vec()];
    tls
}

/// The control stream of a session.
pub(crate) struct Control {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    reader: CapsuleReader,
}

impl Control {
    /// Opens the stream and says HELLO.
    pub(crate) async fn hello(
        connection: &Connection,
        source: &SpiffeId,
        destination: &SpiffeId,
    ) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut control = Self {
            send,
            receive,
            reader: CapsuleReader::default(),
        };
        let hello = Hello {
            version: 1,
            flags: PeerFlags::ALL,
            source: source.clone(),
            destination: destination.clone(),
        };
        control.say(&Capsule::Hello(hello)).await;
        control
    }

    /// Takes the dialler's stream.
    pub(crate) async fn accept(connection: &Connection) -> Result<Self, quinn::ConnectionError> {
        let (send, receive) = connection.accept_bi().await?;
        Ok(Self {
            send,
            receive,
            reader: CapsuleReader::default(),
        })
    }

    /// Sends one capsule.
    pub(crate) async fn say(&mut self, capsule: &Capsule) {
        let mut bytes = Vec::new();
        capsule.encode(&mut bytes);
        self.send.write_all(&bytes).await.unwrap();
    }

    /// The next capsule; `None` when the peer closed.
    pub(crate) async fn hear(&mut self) -> Option<Capsule> {
        loop {
            if let Some(capsule) = self.reader.poll().unwrap() {
                return Some(capsule);
            }
            let chunk = self.receive.read_chunk(1 << 14, true).await.ok()??;
            self.reader.push(&chunk.bytes);
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Looks at nobody's certificate.
#[derive(Debug)]
struct TrustsEverybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustsEverybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for TrustsEverybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
