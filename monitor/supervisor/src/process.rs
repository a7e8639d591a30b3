//! Children: each has an owner, and dropping the owner ends the child; each is alone in a namespace of process numbers.
//! What a child says on standard error is kept to its last lines: its volume may be in a guest's hands.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::guarded::Guarded;

/// A child that ends with its owner.
#[derive(Debug)]
pub struct Owned(Child);

impl Owned {
    /// Starts it. It sees none of our environment and, every descriptor of ours being close-on-exec, nothing
    /// but its standard streams.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        spawn_apart(command.env_clear().current_dir("/")).map(Self)
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child, for its streams.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// True once it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Gives it time to end by itself, then kills it.
    pub fn end_within(mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.0.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                status => return status.ok().flatten(),
            }
        }
        None
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a child as the first process of a namespace of process numbers (SPEC 6.3.1): it can name, and so signal, none
/// but those it starts, and they end with it. Whoever unshares that namespace stays in its own, and so may start no
/// thread any more: therefore it is a thread that ends with this.
pub fn spawn_apart(command: &mut Command) -> io::Result<Child> {
    thread::scope(|scope| {
        let apart = || {
            unshare(CloneFlags::CLONE_NEWPID)?;
            command.spawn()
        };
        let thread = thread::Builder::new().name("spawn".into()).spawn_scoped(scope, apart)?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

/// Closes every descriptor but the standard streams. For the first moment of a process, before it opens any:
/// whoever started the monitor may have left some open, and children would inherit them.
pub fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // One of them was the directory just read, which is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// The last bytes of a stream.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Guarded<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    ended: bool,
}

/// Bytes kept of a child's standard error.
const TAIL_MAX: usize = 2048;

impl Tail {
    /// Reads `stream` to its end on a thread of its own, then calls `at_end`.
    pub fn follow(
        mut stream: impl Read + Send + 'static,
        at_end: impl FnOnce(&Tail) + Send + 'static,
    ) -> io::Result<Self> {
        let tail = Self::default();
        let ours = tail.clone();
        thread::Builder::new().name("tail".into()).spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                ours.push(buffer.get(..n).unwrap_or_default());
            }
            ours.0.lock().ended = true;
            ours.0.notify();
            at_end(&ours);
        })?;
        Ok(tail)
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock();
        kept.bytes.extend_from_slice(bytes);
        let excess = kept.bytes.len().saturating_sub(TAIL_MAX);
        kept.bytes.drain(..excess);
    }

    /// The last line that says something, printable characters only.
    pub fn last_line(&self) -> Option<String> {
        last_line(&self.0.lock().bytes)
    }

    /// The last line of all, once the stream has ended: a process that was reaped may have said something
    /// that nobody has read yet. A stream that somebody else holds open is waited for no longer than this.
    pub fn last_line_within(&self, patience: Duration) -> Option<String> {
        last_line(&self.0.wait_while_for(patience, |kept| !kept.ended).bytes)
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().map(printable).find(|line| !line.trim().is_empty())
}

/// Text from an untrusted source, fit for a terminal and a log: printable ASCII, at most 256 characters.
pub fn printable(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn tail_keeps_the_last_line_only_and_makes_it_printable() {
        let (send, receive) = std::sync::mpsc::channel();
        let text = [vec![b'x'; 10_000], b"\nthe reason\x1b[2J\n\n".to_vec()].concat();
        let tail = Tail::follow(io::Cursor::new(text), move |_| send.send(()).unwrap()).unwrap();
        receive.recv().unwrap();
        assert_eq!(tail.last_line().as_deref(), Some("the reason?[2J"));
        assert!(tail.0.lock().bytes.len() <= TAIL_MAX);
    }

    #[test]
    fn a_child_is_the_first_of_its_processes_and_ours_go_on() {
        let numbers = |child: &mut Owned| {
            let mut text = String::new();
            child.child().stdout.take().unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let mut script = Command::new("/bin/sh");
        let script = script.args(["-c", "echo $$; kill -0 $0 || echo none"]);
        let mut child =
            Owned::spawn(script.arg(std::process::id().to_string()).stdout(Stdio::piped()))
                .unwrap();
        assert_eq!(numbers(&mut child), "1\nnone\n");
        // Neither this thread nor its children have moved.
        let own = Command::new("/bin/sh").args(["-c", "kill -0 $PPID"]).status().unwrap();
        assert!(own.success() && thread::spawn(|| true).join().unwrap());
    }

    #[test]
    fn a_child_has_nothing_of_our_environment() {
        let seen = |child: &mut Child| {
            let mut text = String::new();
            child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            child.wait().unwrap();
            text
        };
        let env = || {
            let mut command = Command::new("/usr/bin/env");
            command.stdout(Stdio::piped());
            command
        };
        assert_ne!(seen(&mut env().spawn().unwrap()), "", "we have one");
        assert_eq!(seen(Owned::spawn(&mut env()).unwrap().child()), "");
    }

    #[test]
    fn dropping_the_owner_ends_the_child() {
        let child = Owned::spawn(Command::new("/bin/sleep").arg("60")).unwrap();
        let proc = format!("/proc/{}", child.id());
        drop(child);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
