//! What a call was answered, and what it may be answered.

use tonic::Code;

use crate::script::From;
use crate::state::State;

/// An answer. Sizes are in MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Made {
        size: u64,
        from: From,
    },
    Taken {
        of: u8,
        size: u64,
    },
    Has {
        size: u64,
    },
    Wrote {
        v: u8,
    },
    /// There was nothing to write to.
    NotThere,
    Refused {
        code: Code,
        why: String,
    },
    /// Nobody heard it.
    Lost,
}

/// What may be answered, and what there is then.
#[derive(Clone, Debug)]
pub struct Outcome {
    expected: Expected,
    pub next: State,
}

#[derive(Clone, Debug)]
enum Expected {
    Answer(Answer),
    Codes(Vec<Code>),
}

impl Outcome {
    pub fn new(answer: Answer, next: State) -> Self {
        Self { expected: Expected::Answer(answer), next }
    }

    pub fn refused(codes: &[Code], next: State) -> Self {
        Self { expected: Expected::Codes(codes.to_vec()), next }
    }

    pub fn fits(&self, answer: &Answer) -> bool {
        match (&self.expected, answer) {
            (Expected::Answer(expected), _) => expected == answer,
            (Expected::Codes(codes), Answer::Refused { code, .. }) => codes.contains(code),
            (Expected::Codes(_), _) => false,
        }
    }

    /// What may be answered, for people.
    pub fn describe(&self) -> String {
        match &self.expected {
            Expected::Answer(answer) => format!("{answer:?}"),
            Expected::Codes(codes) => format!("{codes:?}"),
        }
    }
}
