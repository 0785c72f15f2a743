// Light or dark: the system's choice until the reader makes one. No module, because those run after the first paint,
// which would flash in the other colours.
{
    const KEY = "cria.theme";
    const THEMES = ["system", "light", "dark"];
    const read = () => {
        try {
            return localStorage.getItem(KEY) ?? "system";
        } catch {
            return "system";
        }
    };
    const apply = (theme) => {
        document.documentElement.dataset.theme = theme;
    };
    apply(read());

    addEventListener("DOMContentLoaded", () => {
        const button = document.getElementById("theme");
        const label = () => {
            const theme = document.documentElement.dataset.theme;
            button.textContent = { system: "Auto", light: "Light", dark: "Dark" }[theme];
            button.setAttribute("aria-label", `Colours: ${theme}. Change`);
        };
        button.addEventListener("click", () => {
            const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
            apply(next);
            label();
            try {
                localStorage.setItem(KEY, next);
            } catch {
                // it is forgotten, no more
            }
        });
        label();
    });
}
