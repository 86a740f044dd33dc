//! Compiles every `.proto` file below `protos/` (without protoc), generates the messages, clients
//! and servers, and takes over `Debug` for each message that holds a secret.

#[path = "build/redact.rs"]
mod redact;

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // Cargo looks into the folders, so a new file counts as a change too.
    for input in ["build.rs", "build", "protos", "tests/fixtures"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    generate("protos", &out_dir)?;
    // Only the crate's unit tests include it: shapes of secrets that no real message has yet.
    generate("tests/fixtures", &out_dir.join("fixtures"))
}

/// Generates into `out_dir`: `modules.rs` (all packages as a tree of modules), `debug.rs` (the
/// `Debug` impls), `messages.rs` (a table for the tests) and `descriptors.bin`.
fn generate(protos: &str, out_dir: &Path) -> Result<()> {
    fs::create_dir_all(out_dir)?;
    let mut files = Vec::new();
    find_protos(Path::new(protos), &mut files)?;
    files.sort();

    // Fixtures import the options from `protos`.
    let includes = if protos == "protos" { vec![protos] } else { vec![protos, "protos"] };
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;
    // The comments in here become the documentation of the generated items.
    let documented = compiler.file_descriptor_set();
    // This encoding, unlike prost-types, keeps options such as csi_secret.
    let descriptors = compiler.include_source_info(false).encode_file_descriptor_set();
    fs::write(out_dir.join("descriptors.bin"), descriptors)?;

    let secrets = redact::Secrets::find(&compiler.descriptor_pool())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(secrets.messages_with_secrets())
        .include_file("modules.rs")
        .out_dir(out_dir)
        .compile_fds(documented)?;
    fs::write(out_dir.join("debug.rs"), secrets.debug_impls()?)?;
    fs::write(out_dir.join("messages.rs"), secrets.message_table()?)?;
    Ok(())
}

fn find_protos(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension() == Some(OsStr::new("proto")) {
            found.push(path);
        }
    }
    Ok(())
}
