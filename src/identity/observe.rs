//! What TLS negotiated, read from the ServerHello.
//!
//! quinn-proto keeps the cipher suite and the key-exchange group to itself. Both stand in the ServerHello (RFC 8446
//! §4.1.3), which passes through `Session::read_handshake` on clients and `Session::write_handshake` on servers. The
//! wrappers here look at those bytes and leave everything else to quinn-proto's own session. The Finished messages cover
//! the ServerHello, so once a handshake has completed both ends agree on what is reported.

use std::{any::Any, fmt, sync::Arc};

use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError,
    crypto::{
        ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig,
        Session, UnsupportedVersion,
        rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
    },
    transport_parameters::TransportParameters,
};
use rustls::{CipherSuite, NamedGroup};

use crate::identity::VerifyReport;

/// Cipher suite and key-exchange group of a handshake; the version is TLS 1.3, as no other is enabled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Negotiated {
    /// The cipher suite.
    pub cipher: CipherSuite,
    /// The key-exchange group.
    pub group: NamedGroup,
}

impl Negotiated {
    /// The protocol version, as metrics and people call it.
    pub const VERSION: &str = "TLSv1.3";

    /// The suite's IANA name, `TLS_AES_128_GCM_SHA256`.
    pub fn cipher_name(&self) -> String {
        // rustls calls the suites of TLS 1.3 `TLS13_…`.
        format!("{:?}", self.cipher).replacen("TLS13_", "TLS_", 1)
    }

    /// The group's name, `X25519MLKEM768`.
    pub fn group_name(&self) -> String {
        format!("{:?}", self.group)
    }
}

impl fmt::Display for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cipher, group) = (self.cipher_name(), self.group_name());
        write!(f, "{} {cipher} {group}", Self::VERSION)
    }
}

/// quinn-proto's client cryptography over `config`, telling `report` what was negotiated.
///
/// # Errors
/// When `config` lacks AES-128-GCM-SHA256, which QUIC's Initial packets need.
pub fn quic_client(
    config: rustls::ClientConfig,
    report: &VerifyReport,
) -> Result<Arc<dyn ClientConfig>, NoInitialCipherSuite> {
    Ok(Arc::new(ObservedClient {
        inner: Arc::new(QuicClientConfig::try_from(config)?),
        report: report.clone(),
    }))
}

/// quinn-proto's server cryptography over `config`, telling `report` what was negotiated.
///
/// # Errors
/// When `config` lacks AES-128-GCM-SHA256, which QUIC's Initial packets need.
pub fn quic_server(
    config: rustls::ServerConfig,
    report: &VerifyReport,
) -> Result<Arc<dyn ServerConfig>, NoInitialCipherSuite> {
    Ok(Arc::new(ObservedServer {
        inner: Arc::new(QuicServerConfig::try_from(config)?),
        report: report.clone(),
    }))
}

struct ObservedClient {
    inner: Arc<QuicClientConfig>,
    report: VerifyReport,
}

impl ClientConfig for ObservedClient {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = self
            .inner
            .clone()
            .start_session(version, server_name, params)?;
        Ok(Observed::boxed(inner, Side::Client, &self.report))
    }
}

struct ObservedServer {
    inner: Arc<QuicServerConfig>,
    report: VerifyReport,
}

impl ServerConfig for ObservedServer {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.inner.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.inner.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let inner = self.inner.clone().start_session(version, params);
        Observed::boxed(inner, Side::Server, &self.report)
    }
}

/// A session whose ServerHello is looked at.
struct Observed {
    inner: Box<dyn Session>,
    side: Side,
    report: VerifyReport,
    /// None once the ServerHello was seen.
    hello: Option<HelloReader>,
}

impl Observed {
    fn boxed(inner: Box<dyn Session>, side: Side, report: &VerifyReport) -> Box<dyn Session> {
        Box::new(Self {
            inner,
            side,
            report: report.clone(),
            hello: Some(HelloReader::default()),
        })
    }

    fn look(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.hello else {
            return;
        };
        match reader.read(bytes) {
            Hello::Incomplete => {}
            Hello::Seen(negotiated) => {
                self.report.note_negotiated(negotiated);
                self.hello = None;
            }
            Hello::Unreadable => self.hello = None,
        }
    }
}

impl Session for Observed {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let has_data = self.inner.read_handshake(buf)?;
        if self.side.is_client() {
            self.look(buf);
        }
        Ok(has_data)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let start = buf.len();
        let keys = self.inner.write_handshake(buf);
        if self.side.is_server() {
            self.look(buf.get(start..).unwrap_or_default());
        }
        keys
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

/// What the bytes so far tell.
#[derive(Debug, Eq, PartialEq)]
enum Hello {
    Incomplete,
    Seen(Negotiated),
    Unreadable,
}

/// Collects handshake messages until a ServerHello that is not a HelloRetryRequest is complete.
#[derive(Default)]
struct HelloReader {
    buffer: Vec<u8>,
}

impl HelloReader {
    fn read(&mut self, bytes: &[u8]) -> Hello {
        if self.buffer.len().saturating_add(bytes.len()) > MAX_HELLO {
            return Hello::Unreadable;
        }
        self.buffer.extend_from_slice(bytes);
        loop {
            let Some((message, rest)) = split_message(&self.buffer) else {
                return Hello::Incomplete;
            };
            match server_hello(message) {
                None => return Hello::Unreadable,
                Some(HelloKind::Server(negotiated)) => return Hello::Seen(negotiated),
                Some(HelloKind::Retry) => self.buffer = rest.to_vec(),
            }
        }
    }
}

enum HelloKind {
    Retry,
    Server(Negotiated),
}

/// Splits one handshake message (type, 24-bit length, body) off; None while it is incomplete. RFC 8446 §4.
fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [_, a, b, c] = *bytes.first_chunk::<4>()?;
    let len = u32::from_be_bytes([0, a, b, c]);
    bytes.split_at_checked(usize::try_from(len).ok()?.checked_add(4)?)
}

/// Reads a ServerHello message. RFC 8446 §4.1.3:
///
/// ```text
/// type(8)=2 length(24) version(16) random[32] session id<0..32> cipher suite(16) compression(8) extensions<6..2^16-1>
/// ```
fn server_hello(message: &[u8]) -> Option<HelloKind> {
    let (header, rest) = message.split_at_checked(6)?;
    if header.first() != Some(&2) {
        return None;
    }
    let (random, rest) = rest.split_at_checked(32)?;
    if random == RETRY_RANDOM {
        return Some(HelloKind::Retry);
    }
    let (id_len, rest) = rest.split_first()?;
    let (_, rest) = rest.split_at_checked(usize::from(*id_len))?;
    let (cipher, rest) = rest.split_first_chunk::<2>()?;
    let (_compression, rest) = rest.split_first()?;
    let (_extensions_len, mut extensions) = rest.split_first_chunk::<2>()?;
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (body, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        if u16::from_be_bytes(*kind) == KEY_SHARE {
            return Some(HelloKind::Server(Negotiated {
                cipher: CipherSuite::from(u16::from_be_bytes(*cipher)),
                group: NamedGroup::from(u16::from_be_bytes(*body.first_chunk::<2>()?)),
            }));
        }
        extensions = rest;
    }
    None
}

/// A ServerHello with an X25519MLKEM768 share has about 1.2 KB, two extensions and one share.
const MAX_HELLO: usize = 16 * 1024;
/// The extension `key_share` (RFC 8446 §4.2).
const KEY_SHARE: u16 = 51;
/// The random of a HelloRetryRequest (RFC 8446 §4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A ServerHello with supported_versions, then key_share of X25519MLKEM768 with four bytes of share.
    fn hello(random: [u8; 32]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random);
        body.extend([0, 0x13, 0x02, 0]);
        body.extend([0, 18, 0, 43, 0, 2, 3, 4, 0, 51, 0, 8]);
        body.extend([0x11, 0xec, 0, 4, 1, 2, 3, 4]);
        let mut message = vec![2, 0, 0, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        message
    }

    fn seen() -> Hello {
        Hello::Seen(Negotiated {
            cipher: CipherSuite::TLS13_AES_256_GCM_SHA384,
            group: NamedGroup::X25519MLKEM768,
        })
    }

    #[test]
    fn suite_and_group_are_found_however_the_bytes_are_cut() {
        let bytes = [hello(RETRY_RANDOM), hello([7; 32])].concat();
        for cut in 0..bytes.len() {
            let mut reader = HelloReader::default();
            assert_eq!(reader.read(&bytes[..cut]), Hello::Incomplete, "{cut}");
            assert_eq!(reader.read(&bytes[cut..]), seen(), "{cut}");
        }
    }

    #[test]
    fn other_messages_and_floods_are_unreadable() {
        let mut other = hello([7; 32]);
        other[0] = 8;
        let mut no_share = hello([7; 32]);
        no_share[51] = 50;
        for bytes in [other, no_share, vec![2; MAX_HELLO + 1]] {
            assert_eq!(HelloReader::default().read(&bytes), Hello::Unreadable);
        }
    }

    #[test]
    fn names_are_those_of_the_registries() {
        let Hello::Seen(negotiated) = seen() else {
            unreachable!()
        };
        assert_eq!(
            negotiated.to_string(),
            "TLSv1.3 TLS_AES_256_GCM_SHA384 X25519MLKEM768"
        );
    }
}
