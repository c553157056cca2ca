//! The terminal while it is ours: another screen, keys one by one, and everything as it was afterwards.

use std::io::{self, Read as _, Write as _};

use pithead_hop::program::paint::Paint;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::frame::{Frame, WIDTH};

/// The other screen of a terminal, so that what was on this one is there afterwards; and no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// From the upper left corner on.
const HOME: &str = "\x1b[H";
/// The rest of a line, and the rest of the screen, is empty.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Height where the terminal does not say it.
const HEIGHT: usize = 24;
/// Keys that were struck and not looked at: more than anybody means.
const KEYS: usize = 8;

/// Columns and rows of the terminal, if it is one that says so.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The terminal. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct Screen {
    before: Termios,
}

impl Screen {
    /// Takes it.
    pub(super) fn take() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut keys = before.clone();
        // Ctrl-C stays a signal: whoever handles it gives the terminal back.
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Now, &keys)?;
        let screen = Self { before };
        say(ENTER)?;
        Ok(screen)
    }

    /// Keys as they are struck; ends with standard input.
    pub(super) fn keys(&self) -> mpsc::Receiver<u8> {
        let (tell, hears) = mpsc::channel(KEYS);
        std::thread::spawn(move || {
            for key in io::stdin().lock().bytes().map_while(Result::ok) {
                if tell.blocking_send(key).is_err() {
                    return;
                }
            }
        });
        hears
    }

    /// Draws a frame over the one before.
    pub(super) fn draw(&mut self, frame: &Frame, paint: Paint) -> io::Result<()> {
        let (width, height) = size().unwrap_or((WIDTH, HEIGHT));
        let mut text = frame.text(width, height.saturating_sub(1), paint);
        text.push_str("q ends");
        let cut = text.replace('\n', &format!("{CLEAR_LINE}\r\n"));
        say(&format!("{HOME}{cut}{CLEAR_LINE}{CLEAR_BELOW}"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Whatever of it fails, there is nobody left to tell.
        let _ = say(LEAVE);
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
