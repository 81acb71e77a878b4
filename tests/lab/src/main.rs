//! The lab's command line: `lab try`, and the daemon behind `lab daemon …`.

use std::process::ExitCode;

use lab::daemon::Program;
use tlswarden::base::allocator::Allocator;

// As in the program itself.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const HELP: &str = "\
The closed mail world of tlswarden's tests.

usage: lab try          a day in the life of a mail host, on loopback: no root, no MTA, nothing to install
       lab daemon ...   tlswarden itself, as `tlswarden ...`

exit code: 0 every check held, 1 one did not, 2 the world could not be built, 64 wrong usage
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|first| first.to_str()) {
        Some("daemon") => tlswarden::cli::run(arguments),
        Some("try") => try_it(),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(64)
        }
    }
}

fn try_it() -> ExitCode {
    let played = std::env::current_exe().map_err(|e| e.to_string()).and_then(|itself| {
        let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
        runtime.block_on(lab::demo::run(&Program::lab(itself)))
    });
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("lab: {e}");
            ExitCode::from(2)
        }
    }
}
