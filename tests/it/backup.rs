//! A backup in the order of docs/operations/backup.md, under load: after the restore no event is
//! missing that was acknowledged before the backup began.

use std::collections::HashSet;
use std::process::Command;

use crate::harness::postgres::program;
use crate::harness::server::{run, wait_for_partitions};
use crate::harness::temp::temp_dir;
use crate::harness::{Postgres, Producer, Proxy, Server, until};

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_backup_of_the_journal_and_then_of_the_database_has_every_event_acknowledged_before() {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let server = Server::start(&[
        ("DATABASE_URL", &Postgres::url_through(proxy.port(), "none")),
        ("DURABILITY", "written"),
    ]);
    wait_for_partitions(&postgres);
    let producer = Producer::start(server.address(), 4);
    until("events are stored", || server.metric("events_stored_total") > 500);
    // What is acknowledged from now on is in the journal only.
    proxy.cut();
    until("events wait", || server.metric("events_buffered") > 500);

    let began = producer.now();
    let backup = temp_dir();
    let (data, dump) = (backup.path().join("data"), backup.path().join("aurore.dump"));
    succeed(Command::new("cp").arg("-a").arg(server.data_dir()).arg(&data));
    succeed(
        Command::new(program("pg_dump")).args(["--format=custom", "--file"]).arg(&dump).arg(postgres.url()),
    );
    proxy.repair();
    let record = producer.stop();

    let restored = Postgres::start();
    succeed(Command::new(program("pg_restore")).args(["--dbname", &restored.url()]).arg(&dump));
    let before: Vec<_> =
        record.acknowledged_at.iter().filter(|(_, at)| **at <= began).map(|(id, _)| id.clone()).collect();
    let missing = || {
        let rows = restored.rows("SELECT event_id::text FROM events");
        let stored: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
        before.iter().filter(|id| !stored.contains(*id)).count()
    };
    assert!(missing() > 200, "the database alone is not enough");
    let replayed = run(
        &[("DATABASE_URL", &restored.url())],
        &["journal", "replay", "--data-dir", data.to_str().expect("it is UTF-8")],
    );
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(missing(), 0, "of {}: {}", before.len(), replayed.stdout);
}
