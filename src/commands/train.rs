use super::Failure;
/// Train
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    config: std::path::PathBuf,
}
pub fn run(_: Args) -> Result<(), Failure> {
    Ok(())
}
