//! `identun ca`: a small certificate authority, so that nobody needs a PKI to begin. Its key belongs on no data host.

use std::{
    fs::Permissions,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use crate::{
    cli::{Exit, Format},
    daemon::{clock::unix_now, configuration::timestamp, status::API_VERSION},
    identity::{
        Ca,
        ca::Pem,
        describe::{Description, describe},
    },
    spiffe::{SpiffeId, TrustDomain},
    store,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun ca init --trust-domain cluster.local --dir ca
  identun ca issue spiffe://cluster.local/ns/default/sa/web --dir ca --out web
  identun ca show web/web.pem")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a CA for one trust domain
    #[command(after_help = "\
Examples:
  identun ca init --trust-domain cluster.local --dir ca
  identun ca init --trust-domain prod.example --dir ca --valid-for 365d")]
    Init {
        /// The trust domain it will vouch for
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// Where it lives
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long its certificate holds
        #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration)]
        valid_for: Duration,
    },
    /// Issue an identity for a workload: key, certificate and trust bundle
    #[command(after_help = "\
Examples:
  identun ca issue spiffe://cluster.local/ns/default/sa/web --dir ca --out web
  identun ca issue spiffe://prod.example/ns/db/sa/db --dir ca --out db")]
    Issue {
        /// The identity, within the CA's trust domain
        id: SpiffeId,
        /// The CA's folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Folder for NAME.pem, NAME.key and bundle.pem
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Name of the files; default: the last part of the identity
        #[arg(long)]
        name: Option<String>,
        /// How long the certificate holds
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
        valid_for: Duration,
    },
    /// Show what certificates say
    #[command(after_help = "\
Examples:
  identun ca show web/web.pem
  identun ca show web/bundle.pem -o json")]
    Show {
        /// PEM files with certificates
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match &arguments.command {
        CaCommand::Init {
            trust_domain,
            dir,
            valid_for,
        } => init(trust_domain, dir, *valid_for, out)?,
        CaCommand::Issue {
            id,
            dir,
            out: folder,
            name,
            valid_for,
        } => {
            let name = match name.as_deref().or_else(|| id.path().rsplit('/').next()) {
                Some(name) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
                    name
                }
                _ => bail!("`{id}` gives no file name; use --name"),
            };
            issue(id, dir, folder, name, *valid_for, out)?;
        }
        CaCommand::Show { files, output } => show(files, *output, out)?,
    }
    Ok(Exit::Ok)
}

fn init(
    domain: &TrustDomain,
    dir: &Path,
    valid_for: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    for path in [certificate_path(dir), key_path(dir)] {
        if path.symlink_metadata().is_ok() {
            bail!(
                "{} exists; a CA is not overwritten: choose another folder",
                path.display()
            );
        }
    }
    let pem = Ca::new(domain, unix_now(), valid_for)
        .context("cannot make the CA")?
        .to_pem();
    store::private_dir(dir)?;
    store::write_new(&key_path(dir), pem.key.as_bytes(), 0o600)?;
    store::write_new(&certificate_path(dir), pem.certificate.as_bytes(), 0o644)?;
    writeln!(
        out,
        "CA of {domain}\n  certificate  {} (give it to others)\n  key          {} (keep it secret)",
        certificate_path(dir).display(),
        key_path(dir).display()
    )?;
    Ok(())
}

fn issue(
    id: &SpiffeId,
    dir: &Path,
    folder: &Path,
    name: &str,
    valid_for: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let certificate = store::read_public(&certificate_path(dir)).context("cannot read the CA")?;
    let key = store::read_key(&key_path(dir)).context("cannot read the CA's key")?;
    let ca = Ca::from_pem(&Pem { certificate, key })
        .with_context(|| format!("cannot use the CA in {}", dir.display()))?;
    let now = unix_now();
    let issued = ca
        .issue(id, now, valid_for)
        .with_context(|| format!("cannot issue {id}"))?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let bundle = folder.join("bundle.pem");
    // Replaced one by one: a daemon that reads in between refuses the pair and keeps what it has.
    store::write_private(&file("key"), issued.key.as_bytes())?;
    for (path, text) in [
        (&file("pem"), &issued.certificate),
        (&bundle, &ca.to_pem().certificate),
    ] {
        store::write_private(path, text.as_bytes())?;
        std::fs::set_permissions(path, Permissions::from_mode(0o644))?;
    }
    let until = timestamp(now.saturating_add(valid_for.as_secs()));
    writeln!(
        out,
        "{id}\n  until        {until}\n  certificate  {}\n  key          {}\n  bundle       {}",
        file("pem").display(),
        file("key").display(),
        bundle.display()
    )?;
    Ok(())
}

fn show(files: &[PathBuf], format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for file in files {
        let text = store::read_public(file)?;
        let found = describe(&text).with_context(|| format!("cannot show {}", file.display()))?;
        all.extend(found.into_iter().map(|certificate| (file, certificate)));
    }
    if format == Format::Json {
        let certificates: Vec<_> = all.iter().map(|(_, certificate)| certificate).collect();
        writeln!(
            out,
            "{:#}",
            json!({"apiVersion": API_VERSION, "kind": "Certificates", "certificates": certificates})
        )?;
        return Ok(());
    }
    for (index, (file, certificate)) in all.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        print(file, certificate, out)?;
    }
    Ok(())
}

fn print(file: &Path, certificate: &Description, out: &mut dyn Write) -> std::io::Result<()> {
    let Description {
        subject,
        issuer,
        uris,
        serial,
        not_before,
        not_after,
        key,
        usages,
        is_ca,
        path_len,
    } = certificate;
    writeln!(out, "{}", file.display())?;
    writeln!(
        out,
        "  identity  {}",
        if uris.is_empty() {
            "none".into()
        } else {
            uris.join(", ")
        }
    )?;
    writeln!(
        out,
        "  kind      {}{}",
        if *is_ca { "CA" } else { "workload" },
        path_len
            .map(|len| format!(", path length {len}"))
            .unwrap_or_default()
    )?;
    if !subject.is_empty() {
        writeln!(out, "  subject   {subject}")?;
    }
    writeln!(out, "  issuer    {issuer}")?;
    writeln!(out, "  serial    {serial}")?;
    writeln!(
        out,
        "  valid     {} to {}",
        timestamp(*not_before),
        timestamp(*not_after)
    )?;
    writeln!(out, "  key       {key}")?;
    writeln!(out, "  usages    {}", usages.join(", "))
}

fn certificate_path(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

fn key_path(dir: &Path) -> PathBuf {
    dir.join("ca.key")
}

/// `90s`, `10m`, `24h`, `30d`.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a time; write it as 90s, 10m, 24h or 30d");
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(expected)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    let seconds = number
        .checked_mul(seconds)
        .filter(|&seconds| seconds > 0)
        .ok_or_else(expected)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(2_592_000)));
        for bad in [
            "",
            "d",
            "0h",
            "1",
            "-1d",
            "1.5h",
            "1w",
            "9999999999999999999d",
            "1µ",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ca_is_made_once_and_issues_within_its_domain() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, web) = (dir.path().join("ca"), dir.path().join("web"));
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let day = Duration::from_secs(86_400);
        init(&domain, &ca, day * 10, &mut Vec::new()).unwrap();
        let again = init(&domain, &ca, day * 10, &mut Vec::new()).unwrap_err();
        assert!(again.to_string().contains("not overwritten"), "{again}");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&ca), mode(&ca.join("ca.key"))), (0o700, 0o600));

        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
        issue(&id, &ca, &web, "web", day, &mut Vec::new()).unwrap();
        issue(&id, &ca, &web, "web", day, &mut Vec::new()).unwrap();
        assert_eq!(mode(&web.join("web.key")), 0o600);
        let mut shown = Vec::new();
        show(
            &[web.join("web.pem"), web.join("bundle.pem")],
            Format::Table,
            &mut shown,
        )
        .unwrap();
        let shown = String::from_utf8(shown).unwrap();
        for wanted in [
            "identity  spiffe://cluster.local/ns/default/sa/web\n",
            "kind      workload",
            "kind      CA, path length 0",
        ] {
            assert!(shown.contains(wanted), "{shown}");
        }
        let foreign: SpiffeId = "spiffe://other/ns/default/sa/web".parse().unwrap();
        let refused = format!(
            "{:#}",
            issue(&foreign, &ca, &web, "web", day, &mut Vec::new()).unwrap_err()
        );
        assert!(
            refused.contains("spiffe://other/ns/default/sa/web"),
            "{refused}"
        );
    }
}
