//! Standard output of programs whose output people pipe into `head`: when nobody reads any more, the program ends without a word, as
//! programs do that the kernel ends then.

use std::fmt;
use std::io::{self, Write as _};
use std::process;

/// Exit status of a program that ended for want of a reader: 128 and the number of SIGPIPE.
const NOBODY_READS: i32 = 141;

/// Prints a line, like `println!`.
#[macro_export]
macro_rules! say {
    () => { $crate::stdout::print(::std::format_args!("\n")) };
    ($($text:tt)*) => { $crate::stdout::line(::std::format_args!($($text)*)) };
}

/// Prints a line.
pub fn line(text: fmt::Arguments<'_>) {
    ended(writeln!(io::stdout().lock(), "{text}"));
}

/// Prints, like `print!`.
pub fn print(text: fmt::Arguments<'_>) {
    ended(write!(io::stdout().lock(), "{text}"));
}

fn ended(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(NOBODY_READS),
        Err(error) => {
            eprintln!("cannot write to standard output: {error}");
            process::exit(1);
        }
    }
}
