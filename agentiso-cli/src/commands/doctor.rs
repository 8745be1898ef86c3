//! `doctor`.

use agentiso_core::doctor::{self, CheckStatus, Doctor};
use clap::Args;

use crate::{context::Context, error::CliError, exit, output::table};

/// Check what this host offers, what is missing, and how to get it; status 1 if machines cannot run
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

pub(crate) async fn doctor(_args: DoctorArgs, context: &Context) -> Result<u8, CliError> {
    let doctor = doctor::doctor(&context.config()?).await;
    context.output.print(&doctor, text)?;
    Ok(if doctor.usable { 0 } else { exit::FAILURE })
}

fn text(doctor: &Doctor) -> String {
    let rows: Vec<Vec<String>> = doctor
        .checks
        .iter()
        .flat_map(|check| {
            let status = match check.status {
                CheckStatus::Ok => "ok",
                CheckStatus::Warning => "warning",
                CheckStatus::Missing => "MISSING",
            };
            let found = vec![status.to_owned(), check.name.clone(), check.detail.clone()];
            let remedy =
                check.remedy.iter().map(|remedy| vec![String::new(), String::new(), format!("-> {remedy}")]);
            std::iter::once(found).chain(remedy).collect::<Vec<_>>()
        })
        .collect();
    let conclusion = if doctor.usable { "Machines can run." } else { "Machines cannot run yet." };
    format!("{}\n{conclusion}\n", table(&["STATUS", "CHECK", "FOUND"], &rows))
}

#[cfg(test)]
mod tests {
    use agentiso_core::doctor::Check;

    use super::*;

    #[test]
    fn remedy_is_below_what_was_found() {
        let check = Check {
            name: "QEMU".into(),
            status: CheckStatus::Missing,
            detail: "not found".into(),
            remedy: Some("apt-get install it".into()),
        };
        let doctor = Doctor { usable: false, state_dir: "/s".into(), checks: vec![check] };

        let text = text(&doctor);

        assert!(text.contains("MISSING  QEMU   not found\n"), "{text}");
        assert!(text.contains("               -> apt-get install it\n"), "{text}");
        assert!(text.ends_with("\nMachines cannot run yet.\n"), "{text}");
    }
}
