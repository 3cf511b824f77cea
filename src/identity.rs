//! Identities: SVIDs and bundles, the verifier of both sides, TLS configurations, the small CA.
//!
//! Owns every rule about certificates (policy.md §7.5–7.6) and what TLS may negotiate. Text and bytes in, values out:
//! files are read elsewhere, the time is an argument or a [`WallClock`] that others set.

pub mod bundle;
pub mod ca;
pub mod certificate;
pub mod clock;
pub mod describe;
pub mod expiry;
pub mod identities;
pub mod observe;
pub mod pem;
pub mod report;
pub mod sni;
pub mod svid;
pub mod tls;
pub mod verifier;

pub use bundle::{BundleError, TrustBundles};
pub use ca::{Ca, CaError};
pub use certificate::IssuerError;
pub use clock::WallClock;
pub use identities::{Identities, Identity, IdentityError};
pub use observe::Negotiated;
pub use pem::PemError;
pub use report::{Report, VerifyReport};
pub use svid::{SvidError, X509Svid};
pub use verifier::{PeerRole, VerifyError};
