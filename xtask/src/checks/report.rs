use super::{read, repository, rust_files, table};

/// Number of an attack, what of it, and so on, as the head of the table says.
const COLUMNS: usize = 7;

const SEVERITIES: [&str; 5] = ["Critical", "High", "Medium", "Low", "Info"];

fn attacks() -> Vec<Vec<String>> {
    table(&read("docs/security-report.md"), "attack")
}

/// Everything in back quotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn report_has_a_row_for_each_attack() {
    let rows = attacks();
    let numbers: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let expected: Vec<String> = (1..=13).map(|number: u32| number.to_string()).collect();
    assert_eq!(numbers, expected);
    for row in rows {
        assert_eq!(row.len(), COLUMNS, "attack {}", row[0]);
        assert!(row.iter().all(|cell| !cell.is_empty()), "attack {}: an empty cell", row[0]);
        assert!(SEVERITIES.contains(&row[1].as_str()), "attack {}: severity {}", row[0], row[1]);
    }
}

#[test]
fn report_names_places_that_exist() {
    for row in attacks() {
        let places = quoted(&row[3]);
        assert!(!places.is_empty(), "attack {}: no place", row[0]);
        for place in places {
            let (path, line) = place.rsplit_once(':').unwrap_or_else(|| panic!("attack {}: {place}", row[0]));
            let line: usize = line.parse().unwrap_or_else(|_| panic!("attack {}: {place}", row[0]));
            let source = read(path);
            let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
            assert!(!text.is_empty() && text != "}", "attack {}: {place} is {text:?}", row[0]);
        }
    }
}

/// A test as `cargo test` takes it: `-p PACKAGE --lib|--test NAME|--bin NAME PATH::TO::TEST`.
#[test]
fn report_names_tests_that_exist() {
    for row in attacks() {
        let tests = quoted(&row[6]);
        assert!(!tests.is_empty(), "attack {}: no test", row[0]);
        for test in tests {
            check_test(&row[0], test);
        }
    }
}

fn check_test(attack: &str, test: &str) {
    let words: Vec<&str> = test.split_whitespace().collect();
    let (package, folder, path) = match words[..] {
        ["-p", package, "--lib", path] => (package, "src", path),
        ["-p", package, "--bin", _, path] => (package, "src", path),
        ["-p", package, "--test", _, path] => (package, "tests", path),
        _ => panic!("attack {attack}: {test} is no test"),
    };
    let name = path.rsplit("::").next().unwrap_or(path);
    let files = rust_files(&[&format!("{}/{folder}", package_folder(package))]);
    let target = words.iter().skip_while(|word| **word != "--test").nth(1);
    let is_there =
        files.iter().filter(|file| target.is_none_or(|target| file.contains(&format!("tests/{target}"))));
    let declared = [format!("fn {name}("), format!("    {name}: ")];
    let mut found = is_there.filter(|file| {
        let source = read(file);
        declared.iter().any(|declared| source.contains(declared.as_str()))
    });
    assert!(found.next().is_some(), "attack {attack}: there is no test {test}");
}

fn package_folder(package: &str) -> &str {
    assert!(repository().join(package).is_dir(), "there is no package {package}");
    package
}
