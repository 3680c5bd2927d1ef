//! `counts check` and `counts repair`, beside a running server.

use crate::harness::events::ids_of;
use crate::harness::server::{ProgramOutput, run};
use crate::harness::{Postgres, TestServer, event, wait_for_drain};

fn counts(postgres: &Postgres, arguments: &[&str]) -> ProgramOutput {
    run(&[("DATABASE_URL", &postgres.url()), ("LOG_LEVEL", "warn")], &[&["counts"], arguments].concat())
}

#[test]
fn counts_check_exits_with_1_on_differences_and_counts_repair_fixes_them() {
    let TestServer { server, postgres } = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let batch: Vec<String> = (0..100).map(|row| event(if row % 4 == 0 { "a" } else { "b" }, "m")).collect();
    ids_of(&server.client().post_ndjson(&batch));
    wait_for_drain(&server);
    let checked = counts(&postgres, &["check"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    assert!(checked.stdout.ends_with("hours compared, 0 counts differ\n"), "{}", checked.stdout);

    postgres.execute("UPDATE event_counts SET count = count + 5 WHERE service = 'a'");
    let checked = counts(&postgres, &["check"]);
    assert_eq!(checked.code, Some(1));
    assert!(checked.stdout.contains("\ta\tevents 25\tcounted 30\n"), "{}", checked.stdout);
    assert!(checked.stderr.contains("counts repair"), "{}", checked.stderr);
    let json = counts(&postgres, &["check", "--json"]);
    assert!(json.stdout.contains(r#""service":"a","events":25,"counted":30}"#), "{}", json.stdout);

    let repaired = counts(&postgres, &["repair"]);
    assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
    assert!(repaired.stdout.ends_with(", 1 counts repaired\n"), "{}", repaired.stdout);
    assert_eq!(counts(&postgres, &["check"]).code, Some(0));
    assert_eq!(postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 100);
    assert_eq!(counts(&postgres, &[]).code, Some(2));
}
