for (const button of document.querySelectorAll("button.copy")) {
  const text = document.getElementById(button.dataset.of);
  button.hidden = false;
  button.nextElementSibling.hidden = true;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
