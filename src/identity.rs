//! Identities of this host: SVIDs, trust bundles, verification, the small CA.
