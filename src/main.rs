//! The program: arguments to the library, its answer to the shell.

use std::process::ExitCode;

use tlswarden::base::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    tlswarden::cli::run(std::env::args_os().skip(1))
}
