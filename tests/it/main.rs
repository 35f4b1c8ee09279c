//! The stories: one integration binary, a module per story.
