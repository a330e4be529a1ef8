use super::{LoginName, SecretText};

/// What a password must be like, after NIST SP 800-63B: length and not guessable; no rules on kinds of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordPolicy {
    /// Fewest characters.
    pub min_length: usize,
}

/// Why a password is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordProblem {
    /// Too short to resist guessing.
    #[error("it is shorter than {0} characters")]
    TooShort(usize),
    /// Longer than anybody types; hashing it would be work for nothing.
    #[error("it is longer than {MAX_LENGTH} characters")]
    TooLong,
    /// The login, or the login with a little around it.
    #[error("it is the login, or the login with a few characters added")]
    LikeLogin,
    /// On the list of passwords that attackers try first.
    #[error("it is one of the passwords that attackers try first")]
    Common,
    /// One or two characters repeated, or a run such as `123456…`.
    #[error("it is a repetition or a simple sequence")]
    Pattern,
}

const MAX_LENGTH: usize = 256;

/// Frequent passwords of 12 and more characters, and words whose repetition or decoration makes one.
const DENIED: &str = include_str!("denied_passwords.txt");

impl PasswordPolicy {
    /// Judges a new password.
    ///
    /// # Errors
    /// The first [`PasswordProblem`] found.
    pub fn check(&self, password: &SecretText, login: &LoginName) -> Result<(), PasswordProblem> {
        let text = password.expose();
        let length = text.chars().count();
        if length < self.min_length {
            return Err(PasswordProblem::TooShort(self.min_length));
        }
        if length > MAX_LENGTH {
            return Err(PasswordProblem::TooLong);
        }
        let folded = text.to_lowercase();
        let name = login.as_str();
        let account = name.split('@').next().unwrap_or(name);
        for form in [name, account] {
            // A short login occurs in good passwords by chance; a long one with less than six more characters does not.
            if form.len() >= 3 && folded.contains(form) && length - form.chars().count() < 6 {
                return Err(PasswordProblem::LikeLogin);
            }
        }
        if is_pattern(&folded) {
            return Err(PasswordProblem::Pattern);
        }
        let core = folded.trim_matches(|c: char| !c.is_alphabetic());
        if DENIED.lines().any(|denied| denied == folded || denied == core) {
            return Err(PasswordProblem::Common);
        }
        Ok(())
    }
}

/// A unit of up to four characters repeated, or a run of neighbours up or down.
fn is_pattern(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let repeated = (1..=4).any(|unit| chars.iter().skip(unit).zip(&chars).all(|(a, b)| a == b));
    let steps = |step: i64| {
        chars.windows(2).all(|pair| {
            let distance = i64::from(u32::from(pair[1])) - i64::from(u32::from(pair[0]));
            // 9 is followed by 0 in the runs that people type.
            distance == step || (pair[0], pair[1]) == if step > 0 { ('9', '0') } else { ('0', '9') }
        })
    };
    repeated || steps(1) || steps(-1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: PasswordPolicy = PasswordPolicy { min_length: 12 };

    fn check(password: &str) -> Result<(), PasswordProblem> {
        POLICY.check(&SecretText::new(password), &"margaret@example.org".parse().unwrap())
    }

    #[test]
    fn refuses_what_attackers_try_first() {
        assert_eq!(check("short"), Err(PasswordProblem::TooShort(12)));
        assert_eq!(check("elevenchars"), Err(PasswordProblem::TooShort(12)));
        assert_eq!(check(&"ab7".repeat(100)), Err(PasswordProblem::TooLong));
        assert_eq!(check("Margaret@example.org"), Err(PasswordProblem::LikeLogin));
        assert_eq!(check("margaret12345"), Err(PasswordProblem::LikeLogin));
        assert_eq!(check("aaaaaaaaaaaaaa"), Err(PasswordProblem::Pattern));
        assert_eq!(check("abababababab"), Err(PasswordProblem::Pattern));
        assert_eq!(check("123456789012"), Err(PasswordProblem::Pattern));
        assert_eq!(check("lkjihgfedcba"), Err(PasswordProblem::Pattern));
        assert_eq!(check("Passwordpassword"), Err(PasswordProblem::Common));
        assert_eq!(check("!!administrator2024"), Err(PasswordProblem::Common));
        assert_eq!(check("qwertyuiop123"), Err(PasswordProblem::Common));
    }

    #[test]
    fn takes_long_phrases_in_any_script() {
        for good in [
            "correct horse battery",
            "nine tall ships",
            "двенадцать обезьян",
            "x9$kQm2!vTz8",
        ] {
            assert_eq!(check(good), Ok(()), "{good:?} was refused");
        }
    }

    #[test]
    fn the_list_is_folded_and_trimmed() {
        for line in DENIED.lines() {
            assert_eq!(line, line.to_lowercase().trim());
            assert!(!line.is_empty());
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,300}") {
            let _ = check(&text);
        }
    }
}
