//! TLS connections to a PostgreSQL with a certificate for `localhost` that the CA of `tls/ca.pem`
//! signed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::super::embedded::{Cluster, ClusterLimits};
use super::super::test_database::temp_dir;
use super::super::{ConnectTarget, PostgresLimits, PostgresRepository};
use super::*;
use crate::clock::Clock;

/// A loopback address that no other process uses, so that the default port is free.
const ADDRESS: &str = "127.83.109.2";
const SETTINGS: &[&str] =
    &["listen_addresses=127.83.109.2", "ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key"];

#[test]
fn tls_sslmode_accepts_only_trusted_certificates() {
    let directory = temp_dir("tls");
    let cluster = directory.path().join("postgres");
    Cluster::start(directory.path(), ClusterLimits::default(), &Clock::system()).unwrap().stop().unwrap();
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
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ours = authority("ca.pem", include_str!("tls/ca.pem"));
    let other = authority("other.pem", include_str!("tls/other.pem"));
    let _running =
        Cluster::start_with(directory.path(), ClusterLimits::default(), &Clock::system(), SETTINGS).unwrap();

    let ping = |host: &str, options: &str| {
        let text = format!(
            "host={host} hostaddr={ADDRESS} user=postgres dbname=aurore_events connect_timeout=5 {options}"
        );
        PostgresRepository::new(&ConnectTarget::parse(&text).unwrap(), PostgresLimits::default()).ping()
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
    // More than one TLS record and more than the socket buffer.
    let text = format!(
        "host=localhost hostaddr={ADDRESS} user=postgres dbname=aurore_events sslmode=verify-full sslrootcert={ours}"
    );
    let repository =
        PostgresRepository::new(&ConnectTarget::parse(&text).unwrap(), PostgresLimits::default());
    repository.prepare().unwrap();
    let rows: Vec<u8> =
        (0..300).flat_map(|step| event((NOON + step) * 1000, 1, "a", &"m".repeat(30_000))).collect();
    store(&repository, &[&rows], StorePath::Copy, (300, 0));
}
