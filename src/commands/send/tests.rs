use super::*;
use crate::event::Timestamp;

fn command(files: &[&std::path::Path], lines_max: u64) -> SendCommand {
    let server = "http://localhost:1".to_owned();
    let matches = args::command().get_matches_from(["send", "--service", "a b", "--text"]);
    let command = SendCommand::of(&matches, |_| Ok(server)).unwrap();
    SendCommand { files: files.iter().map(|file| file.to_path_buf()).collect(), lines_max, ..command }
}

fn chunks(command: &SendCommand, clock: &Clock) -> Vec<Chunk> {
    let resume = ResumeState::open(command, clock).unwrap();
    let mut reader = ChunkReader::new(command, &resume);
    std::iter::from_fn(|| reader.next_chunk(clock).unwrap()).collect()
}

#[test]
fn a_dash_alone_is_the_standard_input() {
    let of = |arguments: &[&str]| {
        let matches = args::command().try_get_matches_from(["send"].iter().chain(arguments)).unwrap();
        SendCommand::of(&matches, |_| Ok("http://h".to_owned())).map(|command| command.files)
    };
    assert_eq!(of(&["-"]), Ok(Vec::new()));
    for refused in [&["a", "-"][..], &["-", "-"], &["--resume", "state", "-"]] {
        assert!(of(refused).unwrap_err().contains("`-`"), "{refused:?}");
    }
}

#[test]
fn chunks_are_whole_lines_with_stable_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    std::fs::write(&one, "a\nb\nc\nd\ne").unwrap();
    std::fs::write(&two, "a\nb\n").unwrap();
    let clock = Clock::manual(Timestamp::from_millis(1000), 1);
    let command = command(&[&one, &two], 2);
    let first = chunks(&command, &clock);
    let found: Vec<_> =
        first.iter().map(|chunk| (chunk.number, chunk.file, chunk.begin, chunk.lines.as_slice())).collect();
    assert_eq!(
        found,
        [(0, 0, 0, &b"a\nb\n"[..]), (1, 0, 4, b"c\nd\n"), (2, 0, 8, b"e"), (3, 1, 0, b"a\nb\n")]
    );
    assert_ne!(first[0].key, first[3].key, "equal lines of two files are not the same");
    let keys = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&first), keys(&chunks(&command, &clock)));
}

#[test]
fn interrupted_run_continues_with_the_same_chunks_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let (file, resume) = (dir.path().join("file"), dir.path().join("resume"));
    std::fs::write(&file, "a\nb\nc\n").unwrap();
    let clock = Clock::manual(Timestamp::from_millis(1000), 1);
    let command = SendCommand { resume: Some(resume.clone()), ..command(&[&file], 1) };
    let all = chunks(&command, &clock);
    let mut state = ResumeState::open(&command, &clock).unwrap();
    state.set_position((0, 2));
    state.write().unwrap();
    clock.set_wall(Timestamp::from_millis(9000));
    // Another bound of a chunk does not change the chunks of the run.
    let rest = chunks(&SendCommand { lines_max: 9, ..command.clone() }, &clock);
    assert_eq!(rest.len(), 2);
    assert_eq!((&rest[0].key, rest[0].time), (&all[1].key, all[1].time));
    let other = SendCommand { files: vec![dir.path().join("other")], ..command.clone() };
    assert!(ResumeState::open(&other, &clock).unwrap_err().to_string().contains("another input"));
    state.remove().unwrap();
    assert!(!resume.exists());
}

#[test]
fn text_lines_become_events_and_options_a_query() {
    let body = command(&[], 1).body(b"one \"1\"\r\n\ntwo\xff", Timestamp::from_millis(5));
    assert_eq!(
        String::from_utf8(body).unwrap(),
        "{\"timestamp\":5,\"service\":\"a b\",\"message\":\"one \\\"1\\\"\"}\n{\"timestamp\":5,\"service\":\"a b\",\"message\":\"two\u{fffd}\"}\n"
    );
    let arguments = ["send", "--time-field", "a.b", "--service", "x&y", "--extra", "metadata"];
    let matches = args::command().get_matches_from(arguments);
    let mapped = SendCommand::of(&matches, |_| Ok("http://h".to_owned())).unwrap();
    assert_eq!(mapped.url(), "http://h/events?time_field=a%2Eb&service=x%26y&extra=metadata");
}
