//! `coffer console`: an open box's serial port, both ways.
//!
//! ```text
//!   keys or standard input -> POST .../console          the guest's input, as it comes
//!   GET .../logs?follow=true -> standard output         what the guest prints, byte for byte
//! ```
//! On a terminal every key goes to the guest, Ctrl-C too, but for Ctrl-]; and what the guest prints drives the terminal:
//! that is what an interactive console is, and why closed boxes have none.

use std::convert::Infallible;
use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::args::ConsoleArgs;
use crate::error::Error;
use crate::monitor_client::Monitor;
use crate::output::{self, GuestOutput};
use crate::vm::{Interrupts, block_on, vm_path};

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1D;
/// What was printed before, to see where one is: a screen or so.
const BEFORE: usize = 2048;
/// Read from standard input at once.
const CHUNK: usize = 1024;
/// How long a refusal may take when there is nothing more to show.
const LAST_ANSWER: Duration = Duration::from_millis(300);
/// Chunks under way; a hand that types faster than the guest reads loses keys, a pipe waits.
const CHUNKS: usize = 64;

/// `coffer console`.
pub fn run(args: ConsoleArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let input = vm_path(&args.vm, "/console")?;
    let printed = vm_path(&args.vm, "/logs?follow=true")?;
    block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let mut printed = monitor.stream(&printed).await?;
        let (sender, body) = Channel::new(1);
        let mut upload = std::pin::pin!(monitor.upload(&input, body));
        let by_hand = io::stdin().is_terminal() && io::stdout().is_terminal();
        let mut keys = Keys::read(by_hand);
        tokio::spawn(pass_on(keys.typed, sender));
        let (mut shown, mut uploading) = (GuestOutput::raw(), true);
        let mut skip = true;
        let mut raw = None;
        if by_hand {
            output::note(format!("console of `{}`; Ctrl-] leaves it", args.vm));
            raw = Some(RawTerminal::enter()?);
        }
        let result = loop {
            tokio::select! {
                answer = &mut upload, if uploading => match answer {
                    Ok(()) => uploading = false,
                    Err(error) => break Err(error),
                },
                _ = keys.left.recv() => break Ok(()),
                () = interrupts.next() => break Ok(()),
                chunk = printed.next() => match chunk {
                    Some(chunk) => {
                        // The first is all there was before.
                        let before = chunk.len().saturating_sub(BEFORE);
                        let from = if std::mem::take(&mut skip) { before } else { 0 };
                        shown.write(chunk.get(from..).unwrap_or_default())?;
                    }
                    // Ended; or it was never there to speak with, and the answer is on its way.
                    None if uploading => {
                        let answer = tokio::time::timeout(LAST_ANSWER, &mut upload).await;
                        break answer.unwrap_or(Ok(()));
                    }
                    None => break Ok(()),
                },
            }
        };
        drop(raw);
        result
    })
}

async fn pass_on(mut typed: mpsc::Receiver<Bytes>, mut to: Sender<Bytes, Infallible>) {
    while let Some(bytes) = typed.recv().await {
        if to.send_data(bytes).await.is_err() {
            return;
        }
    }
}

/// Standard input, read by a thread of its own: a read that waits cannot be called off.
struct Keys {
    typed: mpsc::Receiver<Bytes>,
    left: mpsc::Receiver<()>,
}

impl Keys {
    fn read(by_hand: bool) -> Self {
        let (send, typed) = mpsc::channel(CHUNKS);
        let (leave, left) = mpsc::channel(1);
        std::thread::spawn(move || {
            let mut buffer = [0; CHUNK];
            while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
                let all = buffer.get(..n).unwrap_or_default();
                let escape = all.iter().position(|byte| by_hand && *byte == ESCAPE);
                let bytes = Bytes::copy_from_slice(all.get(..escape.unwrap_or(n)).unwrap_or(all));
                let passed = match by_hand {
                    true => {
                        !matches!(send.try_send(bytes), Err(mpsc::error::TrySendError::Closed(_)))
                    }
                    false => send.blocking_send(bytes).is_ok(),
                };
                if escape.is_some() {
                    // Nobody who waits for this is gone before it came.
                    let _ = leave.blocking_send(());
                    return;
                }
                if !passed {
                    break;
                }
            }
            // The end of input is not the end of output: what was asked may yet be answered.
            drop(send);
            std::thread::park();
            drop(leave);
        });
        Self { typed, left }
    }
}

/// The terminal, with every key passed on as it is; as it was again when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self, Error> {
        let failed = |source: rustix::io::Errno| Error::System {
            action: "set up the terminal",
            source: source.into(),
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no setting back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
