//! The demo's story as a timeline on stdout.

use std::time::Instant;

/// Tells what happens, with the time since the beginning.
#[derive(Debug)]
pub struct Narrator {
    began: Instant,
    colour: bool,
}

impl Narrator {
    /// Begins the story.
    pub fn new() -> Self {
        use std::io::IsTerminal as _;
        Self {
            began: Instant::now(),
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// A new chapter.
    pub fn chapter(&self, title: &str) {
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("\n{bold}{title}{plain}");
    }

    /// Something happened.
    pub fn say(&self, text: &str) {
        println!("{:>8.3} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Something was proved, or was not.
    pub fn verdict(&self, holds: bool, text: &str) {
        let (colour, plain) = match (self.colour, holds) {
            (false, _) => ("", ""),
            (true, true) => ("\x1b[32m", "\x1b[0m"),
            (true, false) => ("\x1b[31m", "\x1b[0m"),
        };
        let word = if holds { "proved" } else { "FAILED" };
        println!(
            "{:>8.3} s  {colour}{word}{plain}  {text}",
            self.began.elapsed().as_secs_f64()
        );
    }
}
