//! What is wrong with a file, where, and what to do; and the table of every code.
//!
//! Owns the shape of a finding. Never prints: [`render`](fn@crate::policy::render) makes the text.

use std::sync::Arc;

use crate::registry::Place;

/// A file's name as the user gave it, and its text.
#[derive(Debug)]
pub struct SourceFile {
    /// The name that stands in every [`Place`].
    pub name: Arc<str>,
    /// The whole text; the reader of the file has already refused what is not UTF-8.
    pub text: String,
}

/// How much a finding weighs. Only an error blocks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The set of files is refused.
    Error,
    /// The set works, but probably not as meant.
    Warning,
    /// Worth knowing.
    Info,
}

/// One finding about the files.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Diagnostic {
    /// How much it weighs.
    pub severity: Severity,
    /// IDT0101 ...; one code a class.
    pub code: &'static str,
    /// One sentence, lower case, no full stop, with the offending text in backticks.
    pub message: String,
    /// The value or key that is wrong.
    pub place: Option<Place>,
    /// How many characters from `place` are marked.
    pub length: usize,
    /// What stands under the marks: `expected STRICT or PERMISSIVE`.
    pub label: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding of the class `code`, with its severity, not yet placed.
    pub fn new(code: &'static Code, message: impl Into<String>) -> Self {
        Self {
            severity: code.severity,
            code: code.id,
            message: message.into(),
            place: None,
            length: 0,
            label: None,
            help: None,
        }
    }

    /// Says where: the marks begin at `place` and are `length` characters long.
    #[must_use]
    pub fn at(mut self, place: Place, length: usize) -> Self {
        self.place = Some(place);
        self.length = length;
        self
    }

    /// Says what stands under the marks.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whether it blocks.
    pub const fn is_error(&self) -> bool {
        matches!(self.severity, Severity::Error)
    }
}

/// One class of findings.
#[derive(Debug)]
pub struct Code {
    /// `IDT` and four digits.
    pub id: &'static str,
    /// The severity of every finding of the class.
    pub severity: Severity,
    /// One sentence for `identun explain CODE`.
    pub meaning: &'static str,
}

impl Code {
    /// The class with this id, as it stands in the table.
    pub fn find(id: &str) -> Option<&'static Self> {
        codes::ALL.iter().copied().find(|code| code.id == id)
    }
}

/// Every class, by name. 01 the text, 02 values, 03 documents, 04 meaning of one resource, 05 the set as a whole,
/// 06 files and identities.
pub mod codes {
    use super::{
        Code,
        Severity::{Error, Info, Warning},
    };

    macro_rules! codes {
        ($($name:ident $id:literal $severity:ident $meaning:literal;)*) => {
            $(
                #[doc = $meaning]
                pub static $name: Code = Code { id: $id, severity: $severity, meaning: $meaning };
            )*
            /// Every code, in ascending order.
            pub static ALL: &[&Code] = &[$(&$name),*];
        };
    }

    codes! {
        SYNTAX "IDT0101" Error "The text is not valid YAML 1.2.";
        DUPLICATE_KEY "IDT0102" Error "A key stands twice in one map; which value counts would depend on the reader.";
        ALIAS "IDT0103" Error "Anchors and aliases are refused: a small file could grow without bound.";
        TAG "IDT0104" Error "YAML tags are refused: each field has one type.";
        TOO_LARGE "IDT0105" Error "A file is larger than 1 MiB.";
        TOO_DEEP "IDT0106" Error "Maps and lists are nested more than 64 deep.";
        TOO_MANY_VALUES "IDT0107" Error "A file holds more values than are read.";
        TAB "IDT0108" Error "A tab stands where YAML wants spaces.";
        DIRECTIVE "IDT0109" Error "YAML directives (%YAML, %TAG) are refused.";
        KEY_NOT_TEXT "IDT0110" Error "A key of a map is not plain text.";
        TOO_MANY_FINDINGS "IDT0111" Error "A file has more findings than are listed.";
        ONE_DOCUMENT "IDT0112" Error "A settings file holds exactly one YAML document.";
        CONTROL_CHARACTER "IDT0113" Error "The text holds a control character, or a carriage return inside a line.";

        UNKNOWN_FIELD "IDT0201" Error "A field does not exist; a misspelt security setting must not be skipped.";
        WRONG_TYPE "IDT0202" Error "A value has another type than its field.";
        UNKNOWN_VALUE "IDT0203" Error "A value is not one of those that its field knows; capitals count.";
        MISSING_FIELD "IDT0204" Error "A required field is missing.";
        OUT_OF_RANGE "IDT0205" Error "A number is outside its range.";
        BAD_NAME "IDT0206" Error "A name breaks the naming rules of Kubernetes (RFC 1123) or SPIFFE.";
        BAD_HOST "IDT0207" Error "A host is not a DNS name, not a wildcard name and not an IP address.";
        BAD_ADDRESS "IDT0208" Error "An address is not usable: not an IP address or network, or not one of a host.";
        DUPLICATE_ENTRY "IDT0209" Error "A list names the same thing twice.";
        EMPTY "IDT0210" Error "Something is empty that must say something.";
        BAD_EXPORT "IDT0211" Error "exportTo holds a combination that contradicts itself.";
        BAD_TIME "IDT0212" Error "metadata.creationTimestamp is not an RFC 3339 time.";
        BAD_LABEL "IDT0213" Error "A label or selector breaks the syntax of Kubernetes labels.";
        INVALID_VALUE "IDT0214" Error "A setting has a value that is refused.";

        NOT_A_RESOURCE "IDT0301" Error "A document is not a map with apiVersion, kind, metadata and spec.";
        API_VERSION "IDT0302" Error "kind and apiVersion do not belong together.";
        UNKNOWN_KIND "IDT0303" Error "A kind is probably a misspelt policy kind.";
        DUPLICATE_RESOURCE "IDT0305" Error "Two resources have the same group, kind, namespace and name.";
        FOREIGN_KIND "IDT0306" Info "A kind has nothing to do with policy and is ignored.";
        CLUSTER_SCOPE "IDT0307" Error "A resource of cluster scope has a namespace.";
        UNKNOWN_ANNOTATION "IDT0308" Error "An identun.io annotation does not exist, or not on this kind.";
        BAD_GATEWAY "IDT0309" Error "The annotation identun.io/gateway is not an IP address, alone or with a port.";
        BAD_ANNOTATION "IDT0310" Error "The annotation istio.io/dry-run is neither true nor false.";

        MESH_POLICY_NAME "IDT0401" Error "A MeshPolicy has another name than default; Istio never uses such a one.";
        MESH_POLICY_TARGETS "IDT0402" Error "A MeshPolicy names targets, but holds for the whole mesh.";
        END_USER "IDT0403" Error "JWT and end-user authentication cannot be enforced on packets; dropping them would fail open.";
        PEER_METHOD "IDT0404" Error "An entry of peers names no method.";
        TLS_MODE "IDT0405" Error "The TLS modes SIMPLE and MUTUAL are not supported: they are not the mutual TLS of the mesh.";
        SKIP_VERIFY "IDT0406" Error "insecureSkipVerify would accept any server.";
        TLS_FILES "IDT0407" Error "Keys and certificates cannot be named together with ISTIO_MUTUAL, which uses the workload identity.";
        CHANGES_WIRE "IDT0408" Error "A setting changes the bytes on the wire and is not supported.";
        RESOLUTION "IDT0409" Error "A ServiceEntry wants name resolution, which is not supported.";
        CONTRADICTION "IDT0410" Error "Two fields of one resource contradict each other.";
        UNKNOWN_PORT_NAME "IDT0411" Error "An endpoint names a port that its ServiceEntry does not have.";
        POLICY_NAME "IDT0412" Error "A Policy without targets must be named default, and one with targets must not.";
        TARGET_LABELS "IDT0413" Error "A target of a Policy has labels, which Istio never implemented.";
        PORTS_WITHOUT_SELECTOR "IDT0414" Error "portLevelMtls stands without a selector that says whose ports are meant.";
        CUSTOM "IDT0415" Error "The action CUSTOM and its provider are not supported; ignoring them would fail open.";
        TARGET_REF "IDT0416" Error "targetRef and targetRefs are for gateways and waypoints, which are not supported.";
        NEVER_TRIGGERED "IDT0417" Error "A DENY policy without rules never refuses anything.";
        LAYER_7 "IDT0418" Error "An attribute speaks of requests (layer 7), which packets do not show.";
        BAD_MATCH "IDT0419" Error "A value begins with spiffe:// or has a * in its middle, and so would never match.";

        LATER_PEER "IDT0451" Warning "Only the first mtls entry of peers counts.";
        IGNORED_AT_L4 "IDT0452" Warning "A field concerns requests, not connections, and is ignored.";
        IMPLICIT_PLAINTEXT "IDT0453" Warning "Leaving a mode out means plaintext here.";
        EMPTY_NAMES "IDT0454" Warning "An empty subjectAltNames counts as absent.";
        NEVER_MATCHES "IDT0455" Warning "A name can match no X.509-SVID, because it is not a SPIFFE ID.";
        SUBSET_TLS "IDT0456" Warning "Subsets are never selected here, so their tls has no effect.";
        NOT_ENFORCED "IDT0457" Warning "A setting is accepted but not enforced.";
        SHORT_HOST "IDT0458" Warning "A host with one dot is taken as written, not as service.namespace.";
        PARTIAL_WILDCARD "IDT0459" Warning "A wildcard that replaces part of a label matches more than it seems.";
        EMPTY_SELECTOR "IDT0460" Warning "A selector without labels selects nothing in particular and is ignored.";
        IGNORED_AT_L7 "IDT0461" Info "A setting for requests (layer 7) is ignored.";
        OLD_API "IDT0462" Info "authentication.istio.io/v1alpha1 is the API of Istio 1.1 to 1.5.";
        ROOT_SELECTOR "IDT0463" Warning "A PeerAuthentication with a selector is ignored in the root namespace.";
        SECOND_PEER_AUTHENTICATION "IDT0464" Warning "Without a selector only the oldest PeerAuthentication of a namespace counts.";
        AUDIT "IDT0465" Warning "The action AUDIT is never enforced: it refuses nothing.";
        DROPPED "IDT0466" Warning "With `l7: strict-drop` a part of an AuthorizationPolicy is dropped, as it speaks of requests.";
        LETS_PLAINTEXT_IN "IDT0467" Warning "An ALLOW rule is also true of peers without identity, so it lets plaintext in.";
        ALLOWS_NOTHING "IDT0468" Info "An ALLOW policy without rules allows nothing: it closes its workloads.";

        ADDRESS_CLAIMED_TWICE "IDT0501" Error "Two identities claim one address, but a workload owns its addresses.";
        BAD_IDENTITY "IDT0502" Error "Namespace and service account of a workload make no SPIFFE ID.";

        RULE_WITHOUT_SERVICE "IDT0551" Warning "The host of a DestinationRule matches no service, so the rule has no effect.";
        RULE_HIDDEN "IDT0552" Warning "A DestinationRule never decides, because another one of the same host comes first.";
        RULE_HIDES_MUTUAL_TLS "IDT0553" Warning "A DestinationRule without tls settings hides one that demands mutual TLS.";
        NOT_IN_MESH "IDT0554" Warning "Clients must use mutual TLS, but the endpoint is not in the mesh.";
        MODE_DISABLE "IDT0555" Warning "Clients must use mutual TLS, but the mode is DISABLE.";
        IDENTITY_NOT_ACCEPTED "IDT0556" Warning "The identity of an endpoint is not among those that may answer, so clients refuse it.";
        NO_IDENTITY "IDT0557" Warning "No identity may answer for a service, so clients refuse it.";
        PLAINTEXT_TO_STRICT "IDT0558" Warning "Clients send plaintext, but the mode is STRICT and refuses it.";
        SERVICE_ADDRESS "IDT0559" Warning "A service address is not translated: it works only where each endpoint's host has it.";
        SERVICES_OVERLAP "IDT0560" Warning "Two services have the same address and port; the oldest counts, then the first by name.";
        IDENTITY_WITHOUT_WORKLOAD "IDT0561" Warning "This host holds an identity that no workload of this host has.";
        ADDRESS_WITHOUT_WORKLOAD "IDT0562" Warning "A local address belongs to no workload, so policy does not protect it.";
        KEY_NOT_HERE "IDT0563" Warning "A workload is to be reached at this host, but its key is not here.";
        GATEWAY_UNREACHABLE "IDT0564" Warning "A gateway cannot be reached, because this host has no address of its family.";
        EXEMPT "IDT0565" Info "A local port accepts plaintext whatever policy says.";
        NO_POLICY "IDT0566" Info "No policy gives a mode, so the default counts and plaintext is accepted.";
        TARGET_WITHOUT_SERVICE "IDT0567" Warning "The target of a Policy is no known service, so the Policy is not enforced there.";
        TARGET_WITHOUT_PORT "IDT0568" Warning "A Policy names a port that its service does not have, so it is not enforced there.";
        POLICIES_OVERLAP "IDT0569" Warning "Several Policies name one service and port; one for the port counts, then the oldest.";
        BOTH_GENERATIONS "IDT0570" Warning "A PeerAuthentication applies to a workload, so Policy and MeshPolicy are ignored for it.";
        SELECTS_NOTHING "IDT0571" Warning "A selector selects no workload, so its policy has no effect.";
        AUTHENTICATIONS_OVERLAP "IDT0572" Warning "Several PeerAuthentications select one workload; the oldest counts, and ports are not merged.";
        PROTOCOLS_DIFFER "IDT0573" Warning "Two ServiceEntries give one host and port different protocols.";
        TOO_LARGE_TO_LOOK_AT "IDT0574" Info "The set is so large that not every client and service were looked at for conflicts.";

        FILE_UNREADABLE "IDT0601" Error "A file cannot be read, is too large or is not UTF-8.";
        FILE_NOT_TRUSTED "IDT0602" Error "A file is one that others may change, or a key that others may read.";
        BAD_BUNDLE "IDT0603" Error "A trust bundle holds something else than CA certificates.";
        BAD_CERTIFICATE "IDT0604" Error "A certificate and its key make no identity.";
        NOT_VALID_NOW "IDT0605" Error "A certificate does not hold at present; in a bundle with others that do, a warning.";
        IDENTITY_TWICE "IDT0606" Error "Two entries of identities have the same SPIFFE ID.";
        NO_BUNDLE "IDT0607" Error "There is no trust bundle for the trust domain of an identity.";
        NO_ADDRESSES "IDT0608" Error "The addresses of this host cannot be read.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ascending_and_found() {
        assert!(codes::ALL.windows(2).all(|pair| pair[0].id < pair[1].id));
        for code in codes::ALL {
            assert_eq!(code.id.len(), "IDT0101".len());
            assert!(code.meaning.ends_with('.'), "{}", code.id);
            assert_eq!(Code::find(code.id).map(|found| found.id), Some(code.id));
        }
        assert!(Code::find("IDT9999").is_none());
    }
}
