//! The demo tells the truth, and the README shows what it tells.

use std::process::Command;

#[test]
fn the_readme_shows_what_the_demo_prints() {
    let output = Command::new(env!("CARGO_BIN_EXE_license-gateway-demo"))
        .args(["demo", "--once"])
        .env_clear()
        .output()
        .expect("the binary starts");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));

    let readme = include_str!("../../README.md");
    let shown = readme.split("<!-- demo:start -->\n```text\n").nth(1).and_then(|rest| rest.split("```").next());
    let shown = shown.expect("README.md has a block with the demo between its two comments");
    assert_eq!(
        alike(shown),
        alike(&printed),
        "README.md does not show what the demo prints; run `cargo run -- demo --once` and paste it"
    );
}

/// The text without what differs from run to run: ports, random ids, times.
fn alike(text: &str) -> String {
    let words = text.trim().split_inclusive([' ', '\n', '(', ')', ',']);
    let mut alike = String::new();
    for word in words {
        let (body, end) = word.split_at(word.trim_end_matches([' ', '\n', '(', ')', ',']).len());
        let is_random = body.contains("127.0.0.1:")
            || body.parse::<f64>().is_ok()
            || (body.ends_with('Z') && body.contains('T') && body.starts_with("20"))
            || (body.len() >= 36 && body.contains('-') && body.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
        alike.push_str(if is_random { "*" } else { body });
        alike.push_str(end);
    }
    alike
}
