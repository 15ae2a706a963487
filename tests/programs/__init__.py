"""Programs of the tests of reliability: kill and resume, random input."""
