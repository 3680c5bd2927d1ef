//! Encrypted connections to a PostgreSQL with a certificate for `localhost`, signed by the authority of `tls/ca.pem`.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::super::embedded::{Cluster, ClusterLimits};
use super::super::testing::TempDir;
use super::super::{Limits, PostgresRepository, Target};
use super::*;
use crate::clock::Clock;

/// An address of the loopback network that nobody else listens on, so that the port may stay what it is.
const ADDRESS: &str = "127.83.109.2";
const SETTINGS: &[&str] =
    &["listen_addresses=127.83.109.2", "ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key"];

#[test]
fn each_sslmode_trusts_whom_it_should() {
    let directory = TempDir::new("tls");
    let cluster = directory.0.join("postgres");
    Cluster::start(&directory.0, ClusterLimits::default(), &Clock::system()).unwrap().stop().unwrap();
    let owner = std::fs::metadata(&cluster).unwrap();
    for (name, text) in [
        ("server.pem", include_str!("tls/server.pem")),
        ("server.key", include_str!("tls/server.key")),
        ("pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.0/8 trust\n"),
    ] {
        let path = cluster.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let authority = |name: &str, text: &str| {
        let path = directory.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ours = authority("ca.pem", include_str!("tls/ca.pem"));
    let other = authority("other.pem", include_str!("tls/other.pem"));
    let _running =
        Cluster::start_with(&directory.0, ClusterLimits::default(), &Clock::system(), SETTINGS).unwrap();

    let ping = |host: &str, options: &str| {
        let text = format!(
            "host={host} hostaddr={ADDRESS} user=postgres dbname=aurore_events connect_timeout=5 {options}"
        );
        PostgresRepository::new(&Target::parse(&text).unwrap(), Limits::default()).ping()
    };
    for (host, options, part) in [
        ("localhost", "sslmode=prefer".to_owned(), None),
        ("localhost", "sslmode=require".to_owned(), None),
        ("elsewhere.example", "sslmode=require".to_owned(), None),
        ("localhost", format!("sslmode=require sslrootcert={other}"), Some("certificate")),
        ("localhost", format!("sslmode=verify-ca sslrootcert={ours}"), None),
        ("elsewhere.example", format!("sslmode=verify-ca sslrootcert={ours}"), None),
        ("localhost", format!("sslmode=verify-ca sslrootcert={other}"), Some("certificate")),
        ("localhost", format!("sslmode=verify-full sslrootcert={ours}"), None),
        ("elsewhere.example", format!("sslmode=verify-full sslrootcert={ours}"), Some("certificate")),
        ("localhost", format!("sslmode=verify-full sslrootcert={other}"), Some("certificate")),
        ("localhost", "sslmode=disable".to_owned(), Some("28000")),
    ] {
        match (ping(host, &options), part) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => assert!(error.message.contains(part), "{options}: {}", error.message),
            (result, _) => panic!("{host} {options}: {result:?}"),
        }
    }
    // More than one TLS record, and more than the socket takes at once.
    let text = format!(
        "host=localhost hostaddr={ADDRESS} user=postgres dbname=aurore_events sslmode=verify-full sslrootcert={ours}"
    );
    let repository = PostgresRepository::new(&Target::parse(&text).unwrap(), Limits::default());
    repository.prepare(now()).unwrap();
    let rows: Vec<u8> =
        (0..300).flat_map(|step| event((NOON + step) * 1000, 1, "a", &"m".repeat(30_000))).collect();
    store(&repository, &[&rows], StorePath::Copy, (300, 0));
}
