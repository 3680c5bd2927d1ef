//! A command of the program that runs until a test ends it.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::process::{exit_within, signal};
use super::server::{ProgramOutput, command};
use super::temp::temp_dir;

/// Longer than any command takes to end.
const EXIT_MAX: Duration = Duration::from_secs(45);

/// A running command and what it has printed.
pub(crate) struct RunningProgram {
    pub(crate) child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
    _data: tempfile::TempDir,
}

impl RunningProgram {
    /// Starts the program with these arguments and an open standard input. Without `reads_stdout` the
    /// caller takes the standard output of the child.
    pub(crate) fn start(arguments: &[&str], reads_stdout: bool) -> Self {
        let data = temp_dir();
        let mut child = command(&[], data.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) runs");
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let mut readers = vec![follow(child.stderr.take().expect("it is a pipe"), &stderr)];
        if reads_stdout {
            readers.push(follow(child.stdout.take().expect("it is a pipe"), &stdout));
        }
        Self { child, stdout, stderr, readers, _data: data }
    }

    /// What it has written to the standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> ProgramOutput {
        let status = exit_within(EXIT_MAX, "the program", &mut self.child);
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        ProgramOutput { code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // It may have ended, and then has been waited for.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().expect("a child can be killed");
            self.child.wait().expect("a child can be waited for");
        }
    }
}

fn follow(mut pipe: impl Read + Send + 'static, text: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    let text = Arc::clone(text);
    let copy = move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    };
    thread::Builder::new().name("output".into()).spawn(copy).expect("a thread starts")
}
