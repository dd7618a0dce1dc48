use super::Failure;
/// Check
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    config: Option<std::path::PathBuf>,
}
pub fn run(_: Args) -> Result<(), Failure> {
    Ok(())
}
